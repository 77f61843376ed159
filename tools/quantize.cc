#include "tools/quantize.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model_config.h"
#include "engine/weights.h"

namespace osdn::tools {
namespace {

class ModelSource : public TensorSource {
 public:
  explicit ModelSource(const Weights& weights) : weights_(weights) {}

  absl::Status Read(const TensorSpec& spec, int64_t first, absl::Span<float> out) override {
    DecodeRows(weights_.Get(spec.name), first, out);
    return absl::OkStatus();
  }

  std::string Origin(const TensorSpec& spec) const override {
    return absl::StrCat(std::string(kernels::DTypeName(weights_.Get(spec.name).dtype)),
                        " in the model");
  }

 private:
  const Weights& weights_;
};

absl::Status CheckDTypes(const std::string& model_dir, kernels::DType from, kernels::DType to) {
  const std::string name(kernels::DTypeName(from));
  if (from == to) {
    return absl::InvalidArgumentError(absl::StrCat(model_dir, ": is ", name, " already"));
  }
  if (kernels::IsQuantized(from) && kernels::IsQuantized(to)) {
    return absl::InvalidArgumentError(
        absl::StrCat(model_dir, ": is ", name, ", and rounding it again to ",
                     std::string(kernels::DTypeName(to)),
                     " only loses: start from the bf16 or f32 model it was made of"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelWriterReport> QuantizeModel(const QuantizeOptions& options,
                                                const WriteProgress& progress) {
  absl::Status status = CheckOutputApart(options.model_dir, options.output_dir, "the model");
  if (!status.ok()) return status;
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  status = CheckDTypes(options.model_dir, config->dtype, options.dtype);
  if (!status.ok()) return status;
  absl::StatusOr<Weights> weights =
      Weights::Load(options.model_dir, *config, {.verify_checksums = true});
  if (!weights.ok()) return weights.status();

  const std::string from(kernels::DTypeName(config->dtype));
  absl::StrAppend(&config->source, config->source.empty() ? "" : "; ", from, " to ",
                  std::string(kernels::DTypeName(options.dtype)), " by osdn-tools quantize");
  config->dtype = options.dtype;
  config->name = options.name.empty() ? NameFromDirectory(options.output_dir) : options.name;
  ModelSource source(*weights);
  return WriteModelDirectory(
      {.output_dir = options.output_dir,
       .overwrite = options.overwrite,
       .tokenizer_path = absl::StrCat(options.model_dir, "/", kTokenizerFileName),
       .stop = options.stop,
       .progress = progress},
      *std::move(config), &source);
}

}  // namespace osdn::tools
