#include "tests/unit/tools/checkpoint_fixture.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "engine/tensor_specs.h"
#include "tools/checkpoint_config.h"

namespace osdn::tools {

namespace fs = std::filesystem;

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (fs::temp_directory_path() / "osdn-tools-test-XXXXXX").string();
  EXPECT_NE(::mkdtemp(name.data()), nullptr) << name;
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryDirectory::Entries() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path_)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

std::string TestDataPath(const std::string& name) {
  return (fs::path(OSDN_TEST_DATA_DIR) / name).string();
}

std::string GoldenPath(const std::string& name) { return TestDataPath("golden/" + name); }

RawTensor FloatTensor(std::vector<int64_t> shape, const std::vector<float>& values) {
  RawTensor tensor{"F32", std::move(shape), std::vector<std::byte>(values.size() * sizeof(float))};
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

RawTensor HalfTensor(const std::string& dtype, std::vector<int64_t> shape,
                     const std::vector<uint16_t>& bits) {
  RawTensor tensor{dtype, std::move(shape), std::vector<std::byte>(bits.size() * sizeof(uint16_t))};
  std::memcpy(tensor.bytes.data(), bits.data(), tensor.bytes.size());
  return tensor;
}

std::vector<float> FloatsOf(const SourceTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  ReadRows(tensor, 0, absl::MakeSpan(values));
  return values;
}

std::vector<float> FloatsOf(const SafetensorsEntry& entry) {
  return FloatsOf(WholeTensor(entry.dtype, entry.shape, entry.data));
}

nlohmann::json TinyConfig() {
  return {{"model_type", "osdn"}, {"hidden_size", 8},       {"num_heads", 2},
          {"vocab_size", 11},     {"num_hidden_layers", 1}, {"intermediate_size", 6},
          {"bos_token_id", 1},    {"eos_token_id", {2, 3}}};
}

TensorMap TinyTensors(const nlohmann::json& config) {
  const absl::StatusOr<CheckpointConfig> parsed = ParseCheckpointConfig(config.dump());
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  TensorMap tensors;
  float next = -1;
  for (const TensorSpec& spec : TensorSpecs(parsed->arch)) {
    int64_t elements = 1;
    for (const int64_t dim : spec.shape) elements *= dim;
    std::vector<float> values(static_cast<size_t>(elements));
    for (float& value : values) value = next += 1.0F / 1024;
    tensors[spec.name] = FloatTensor(spec.shape, values);
  }
  return tensors;
}

void WriteText(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  ASSERT_TRUE(out.good()) << path;
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

void WriteTensors(const std::string& path, const TensorMap& tensors) {
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const auto& [name, tensor] : tensors) {
    declarations.push_back({name, tensor.dtype, tensor.shape});
  }
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(path, declarations, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& [name, tensor] : tensors) {
    const absl::Status status = writer->Write(tensor.bytes);
    ASSERT_TRUE(status.ok()) << status;
  }
  const absl::Status status = writer->Finish();
  ASSERT_TRUE(status.ok()) << status;
}

void WriteCheckpoint(const std::string& dir, const nlohmann::json& config,
                     const TensorMap& tensors) {
  fs::create_directories(dir);
  WriteText(dir + "/config.json", config.dump(2));
  WriteTensors(dir + "/model.safetensors", tensors);
}

}  // namespace osdn::tools
