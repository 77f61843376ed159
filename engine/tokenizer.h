// Text <-> token ids. Hides SentencePiece, whose header engine/tokenizer.cc alone includes.
#ifndef OSDN_ENGINE_TOKENIZER_H_
#define OSDN_ENGINE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn {

// Immutable after loading; all methods are const and safe to call concurrently.
class Tokenizer {
 public:
  // NOT_FOUND or DATA_LOSS, naming the path.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  ~Tokenizer();

  int64_t vocab_size() const;
  // Any bytes are accepted; invalid UTF-8 follows SentencePiece (byte fallback or unk). Control
  // pieces are never produced from text.
  std::vector<int32_t> Encode(std::string_view text) const;
  // The text of control tokens is empty, and so is that of ids outside the vocabulary (a model's
  // output may be padded beyond it).
  std::string Decode(absl::Span<const int32_t> ids) const;

  // The bytes one token adds inside running text: a leading U+2581 is a space, a byte piece is its
  // byte, control pieces are empty. Concatenating them gives Decode's text but for the one leading
  // space that SentencePiece's dummy prefix adds at the start of a text. Empty for ids outside the
  // vocabulary.
  std::string_view TokenBytes(int32_t id) const;
  // The piece as the vocabulary spells it, e.g. "<|user|>" or "\u2581the"; empty for ids outside.
  std::string_view Piece(int32_t id) const;
  bool IsControl(int32_t id) const;
  // True when the vocabulary adds a dummy leading space at the start of a text.
  bool adds_dummy_prefix() const;
  // Id of a piece by its exact spelling; nullopt when the vocabulary has none.
  std::optional<int32_t> FindPiece(std::string_view piece) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TOKENIZER_H_
