#include "tools/synth.h"

#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/tokenizer.h"
#include "tools/parallel.h"

namespace osdn::tools {
namespace {

// The finaliser of SplitMix64: every bit of the result depends on every bit of x.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// FNV-1a: the same on every machine, unlike std::hash.
uint64_t HashName(const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return hash;
}

// Number `index` of the stream `key`: mean 0, variance 1, and near enough to normal, as the sum of
// four uniform numbers of 16 bits.
float Normal(uint64_t key, uint64_t index) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
  constexpr int32_t kMean = 2 * 65535;
  constexpr float kDeviation = 37836.8F;  // 65536 / sqrt(3)
  const uint64_t bits = Mix(key + index * kGolden);
  const int32_t sum = static_cast<int32_t>(bits & 0xFFFF) +
                      static_cast<int32_t>(bits >> 16 & 0xFFFF) +
                      static_cast<int32_t>(bits >> 32 & 0xFFFF) + static_cast<int32_t>(bits >> 48);
  return static_cast<float>(sum - kMean) / kDeviation;
}

struct Distribution {
  float mean = 0;
  float deviation = 1;
};

// Unit variance in gives unit variance out, but for what is added to the residual stream: each
// layer's two outputs share that of one.
Distribution InitialScale(const TensorSpec& spec, const ArchitectureConfig& arch) {
  const auto ends = [&spec](const char* suffix) { return absl::EndsWith(spec.name, suffix); };
  if (ends("norm.weight")) return {1, 0.1F};
  if (ends("a_proj.bias")) return {4, 0.1F};  // alpha near 0.98, as trained models begin
  if (ends(".bias")) return {0, 0.02F};
  const float unit = 1 / std::sqrt(static_cast<float>(spec.shape.back()));
  if (ends("o_proj.weight") || ends("down_proj.weight")) {
    return {0, unit / std::sqrt(2 * static_cast<float>(arch.num_layers))};
  }
  return {0, unit};
}

class RandomSource : public TensorSource {
 public:
  RandomSource(const ArchitectureConfig& arch, uint64_t seed) : arch_(arch), seed_(seed) {}

  absl::Status Read(const TensorSpec& spec, int64_t first, absl::Span<float> out) override {
    const Distribution scale = InitialScale(spec, arch_);
    const uint64_t key = Mix(Mix(seed_) ^ HashName(spec.name));
    int64_t columns = 1;
    for (size_t i = 1; i < spec.shape.size(); ++i) columns *= spec.shape[i];
    const auto start = static_cast<uint64_t>(first * columns);
    constexpr int64_t kMinShare = 1 << 15;
    ParallelShares(static_cast<int64_t>(out.size()), kMinShare, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[static_cast<size_t>(i)] =
            scale.mean + scale.deviation * Normal(key, start + static_cast<uint64_t>(i));
      }
    });
    return absl::OkStatus();
  }

  std::string Origin(const TensorSpec& /*spec*/) const override { return "random"; }

 private:
  const ArchitectureConfig& arch_;
  uint64_t seed_;
};

absl::Status AddTokenizer(const std::string& path, ModelConfig* config) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) return tokenizer.status();
  if ((*tokenizer)->vocab_size() > config->arch.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", (*tokenizer)->vocab_size(),
                                                   " pieces, the config's vocab_size is ",
                                                   config->arch.vocab_size));
  }
  config->has_tokenizer = true;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelWriterReport> SynthesizeModel(const SynthOptions& options,
                                                  const WriteProgress& progress) {
  absl::StatusOr<ModelConfig> config = LoadArchitectureFile(options.config_path);
  if (!config.ok()) return config.status();
  if (!options.name.empty()) config->name = options.name;
  config->dtype = options.dtype;
  config->source = absl::StrCat("random weights by osdn-tools synth, seed ", options.seed);
  // SentencePiece's customary ids; random weights never mean either.
  constexpr int64_t kLeastVocabulary = 3;
  if (config->arch.vocab_size >= kLeastVocabulary) {
    config->bos_id = 1;
    config->eos_ids = {2};
  }
  if (options.delta_net) {
    config->arch.eta = 0;
    config->arch.apf = Apf::kNone;
  }
  absl::Status status = AddTokenizer(options.tokenizer_path, &*config);
  if (!status.ok()) return status;
  const ArchitectureConfig arch = config->arch;
  RandomSource source(arch, options.seed);
  return WriteModelDirectory({.output_dir = options.output_dir,
                              .overwrite = options.overwrite,
                              .tokenizer_path = options.tokenizer_path,
                              .stop = options.stop,
                              .progress = progress},
                             *std::move(config), &source);
}

}  // namespace osdn::tools
