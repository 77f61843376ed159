// Small checkpoints in flash-linear-attention's layout, made on the spot.
#ifndef OSDN_TESTS_UNIT_TOOLS_CHECKPOINT_FIXTURE_H_
#define OSDN_TESTS_UNIT_TOOLS_CHECKPOINT_FIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/safetensors.h"
#include "tools/source_tensor.h"

namespace osdn::tools {

// Removed with everything in it at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  // Names of what is in it, sorted, hidden entries included.
  std::vector<std::string> Entries() const;

 private:
  std::filesystem::path path_;
};

std::string GoldenPath(const std::string& name);
// In tests/data.
std::string TestDataPath(const std::string& name);

// A tensor as it goes into a safetensors file.
struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};
using TensorMap = std::map<std::string, RawTensor>;

RawTensor FloatTensor(std::vector<int64_t> shape, const std::vector<float>& values);
RawTensor HalfTensor(const std::string& dtype, std::vector<int64_t> shape,
                     const std::vector<uint16_t>& bits);
std::vector<float> FloatsOf(const SourceTensor& tensor);
std::vector<float> FloatsOf(const SafetensorsEntry& entry);

// config.json of a model of one layer, and tensors for it with small values that differ from each
// other. `config` may be changed before TinyTensors is asked.
nlohmann::json TinyConfig();
TensorMap TinyTensors(const nlohmann::json& config);

void WriteText(const std::string& path, std::string_view text);
std::string ReadText(const std::string& path);
void WriteTensors(const std::string& path, const TensorMap& tensors);
void WriteCheckpoint(const std::string& dir, const nlohmann::json& config,
                     const TensorMap& tensors);

}  // namespace osdn::tools

#endif  // OSDN_TESTS_UNIT_TOOLS_CHECKPOINT_FIXTURE_H_
