// A model directory's weights: mapped, checked against the config, immutable.
#ifndef OSDN_ENGINE_WEIGHTS_H_
#define OSDN_ENGINE_WEIGHTS_H_

#include <cstddef>
#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/model_config.h"
#include "engine/safetensors.h"
#include "kernels/include/tensor.h"

namespace osdn {

// Compares the files of a model directory with the sizes and sha256 in model.yaml (about 1.5 GB/s).
// DATA_LOSS naming the first that differs, errors of open(2).
absl::Status VerifyModelFiles(const std::string& model_dir, const ModelConfig& config);

// Concurrent reads are safe. Tensors point into the mapping and live as long as the Weights.
class Weights {
 public:
  struct Options {
    // Compare each file's sha256 with model.yaml (about 1.5 GB/s). Off: sizes and header only.
    bool verify_checksums = true;
  };

  // DATA_LOSS when a file does not match its size or checksum in model.yaml, INVALID_ARGUMENT
  // listing every missing, unexpected, misshapen and wrongly typed tensor at once.
  static absl::StatusOr<Weights> Load(const std::string& model_dir, const ModelConfig& config,
                                      const Options& options);

  // `name` is one of TensorSpecs(config.arch); null data for any other. The shape is the tensor's,
  // whatever its dtype; quantized tensors come with their scales.
  kernels::HostTensor Get(const std::string& name) const;
  // Gives back the memory of a tensor that a backend has copied; it stays readable.
  void Release(const std::string& name) const;
  // Bytes of all tensors, scales included.
  size_t bytes() const;

 private:
  explicit Weights(SafetensorsFile file) : file_(std::move(file)) {}
  void Index(const ModelConfig& config);

  SafetensorsFile file_;
  std::map<std::string, kernels::HostTensor> tensors_;  // into the mapping
};

}  // namespace osdn

#endif  // OSDN_ENGINE_WEIGHTS_H_
