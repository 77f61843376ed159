#include "engine/tokenizer.h"

#include <sentencepiece_processor.h>

#include <unordered_map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/mapped_file.h"

namespace osdn {
namespace {

constexpr char kSpaceSymbol[] = "\xE2\x96\x81";  // U+2581, SentencePiece's visible space

// A byte piece is spelt <0xAB>.
char ByteOfPiece(const std::string& piece) {
  return static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));
}

bool IsBytePieceSpelling(const std::string& piece) {
  constexpr size_t kLength = 6;
  return piece.size() == kLength && absl::StartsWith(piece, "<0x") && piece.back() == '>' &&
         piece.find_first_not_of("0123456789ABCDEFabcdef", 3) == kLength - 1;
}

}  // namespace

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
  // Both indexed by id.
  std::vector<std::string> pieces;
  std::vector<std::string> token_bytes;
  std::unordered_map<std::string_view, int32_t> ids;  // keys point into pieces
  bool adds_dummy_prefix = false;

  bool Contains(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < pieces.size(); }

  std::string BytesOf(int32_t id) const {
    const std::string& piece = pieces[static_cast<size_t>(id)];
    if (processor.IsControl(id)) return "";
    if (processor.IsUnknown(id)) return processor.DecodeIds({id});  // the model's "unknown" sign
    if (processor.IsByte(id) && IsBytePieceSpelling(piece)) return {ByteOfPiece(piece)};
    return absl::StrReplaceAll(piece, {{kSpaceSymbol, " "}});
  }

  void BuildTables() {
    const int32_t size = processor.GetPieceSize();
    pieces.reserve(static_cast<size_t>(size));
    token_bytes.reserve(static_cast<size_t>(size));
    for (int32_t id = 0; id < size; ++id) {
      pieces.push_back(processor.IdToPiece(id));
      token_bytes.push_back(BytesOf(id));
    }
    for (int32_t id = 0; id < size; ++id) ids.emplace(pieces[static_cast<size_t>(id)], id);
    // The option itself is in the model's protobuf, which the library does not hand out.
    std::vector<std::string> probe;
    adds_dummy_prefix = processor.Encode("a", &probe).ok() && !probe.empty() &&
                        absl::StartsWith(probe.front(), kSpaceSymbol);
  }
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const auto bytes = file->bytes();
  auto impl = std::make_unique<Impl>();
  const auto status = impl->processor.LoadFromSerializedProto(
      std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  if (!status.ok()) {
    return absl::DataLossError(
        absl::StrCat(path, " is not a usable SentencePiece model: ", status.ToString()));
  }
  impl->BuildTables();
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(impl_->pieces.size()); }

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  return impl_->processor.EncodeAsIds(text);
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  std::vector<int> known;
  known.reserve(ids.size());
  for (const int32_t id : ids) {
    if (impl_->Contains(id)) known.push_back(id);
  }
  return impl_->processor.DecodeIds(known);
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (!impl_->Contains(id)) return {};
  return impl_->token_bytes[static_cast<size_t>(id)];
}

std::string_view Tokenizer::Piece(int32_t id) const {
  if (!impl_->Contains(id)) return {};
  return impl_->pieces[static_cast<size_t>(id)];
}

bool Tokenizer::IsControl(int32_t id) const {
  return impl_->Contains(id) && impl_->processor.IsControl(id);
}

bool Tokenizer::adds_dummy_prefix() const { return impl_->adds_dummy_prefix; }

std::optional<int32_t> Tokenizer::FindPiece(std::string_view piece) const {
  const auto it = impl_->ids.find(piece);
  if (it == impl_->ids.end()) return std::nullopt;
  return it->second;
}

}  // namespace osdn
