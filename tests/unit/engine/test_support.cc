#include "tests/unit/engine/test_support.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/sha256.h"
#include "engine/tensor_specs.h"
#include "tests/unit/test_paths.h"

namespace osdn::testing_support {

TempDir::TempDir() {
  std::string pattern = testing::TempDir() + "/osdn_test_XXXXXX";
  const char* made = ::mkdtemp(pattern.data());
  EXPECT_NE(made, nullptr) << "cannot make a folder in " << testing::TempDir();
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TestData(const std::string& name) { return absl::StrCat(TestDataDir(), "/", name); }

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << "cannot read " << path;
  std::ostringstream content;
  content << in.rdbuf();
  return content.str();
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << content;
  out.close();
  EXPECT_TRUE(out) << "cannot write " << path;
}

FileDigest DigestOf(const std::string& dir, const std::string& name) {
  const auto hash = HashFile(absl::StrCat(dir, "/", name));
  EXPECT_TRUE(hash.ok()) << hash.status();
  return {name, hash->bytes, hash->sha256};
}

ArchitectureConfig GoldenArchitecture(const std::string& name) {
  ArchitectureConfig arch;
  arch.vocab_size = 97;
  arch.hidden_size = 64;
  arch.num_layers = 2;
  arch.num_heads = 4;
  arch.key_dim = 16;
  arch.value_dim = 16;
  arch.intermediate_size = 96;
  if (name == "tiny_apf_gate") {
    arch.value_dim = 32;
    arch.use_gate = true;
    arch.tie_embeddings = true;
    arch.eta = 0.05;
    arch.apf = Apf::kScalar;
  }
  return arch;
}

ModelConfig WriteGoldenModel(const std::string& name, const std::string& dir) {
  std::filesystem::copy_file(TestData(absl::StrCat("golden/", name, "/model.safetensors")),
                             absl::StrCat(dir, "/", kWeightsFileName),
                             std::filesystem::copy_options::overwrite_existing);
  ModelConfig config;
  config.name = name;
  config.arch = GoldenArchitecture(name);
  config.bos_id = 1;
  config.eos_ids = {2};
  config.files = {DigestOf(dir, kWeightsFileName)};
  WriteFile(absl::StrCat(dir, "/", kModelFileName), ModelConfigToYaml(config));
  return config;
}

TensorMap RandomTensors(const ArchitectureConfig& arch, uint64_t seed) {
  std::mt19937_64 random(seed);
  TensorMap tensors;
  for (const TensorSpec& spec : TensorSpecs(arch)) {
    int64_t count = 1;
    for (const int64_t dim : spec.shape) count *= dim;
    const bool norm = absl::StrContains(spec.name, "norm");
    const bool bias = absl::EndsWith(spec.name, ".bias");
    // Rows of unit variance keep activations near 1 through the layers.
    const double scale = norm || bias ? 0.2 : 1 / std::sqrt(static_cast<double>(spec.shape.back()));
    std::normal_distribution<double> normal(norm ? 1.0 : 0.0, scale);
    std::vector<float>& values = tensors[spec.name];
    for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(normal(random)));
  }
  return tensors;
}

namespace {

// Round to nearest, ties to even; the inputs are finite.
uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

template <typename T>
absl::Span<const std::byte> AsBytes(const std::vector<T>& values) {
  return {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T)};
}

// The plainest rounding that the format allows: each row's, or group's, largest weight gets the
// largest code.
void Quantize(const std::vector<float>& values, int64_t columns, bool int4,
              std::vector<uint8_t>* codes, std::vector<uint8_t>* scales) {
  const int64_t group = int4 ? kernels::kInt4Group : columns;
  const float limit = int4 ? 7 : 127;
  for (size_t row = 0; row < values.size(); row += static_cast<size_t>(columns)) {
    for (int64_t begin = 0; begin < columns; begin += group) {
      const int64_t end = std::min(columns, begin + group);
      float largest = 0;
      for (int64_t i = begin; i < end; ++i) {
        largest = std::max(largest, std::fabs(values[row + static_cast<size_t>(i)]));
      }
      const uint16_t half = ToBf16(largest / limit);
      const float scale =
          int4 ? std::bit_cast<float>(static_cast<uint32_t>(half) << 16U) : largest / limit;
      const auto* bytes =
          int4 ? reinterpret_cast<const uint8_t*>(&half) : reinterpret_cast<const uint8_t*>(&scale);
      scales->insert(scales->end(), bytes, bytes + (int4 ? 2 : 4));
      for (int64_t i = begin; i < end; ++i) {
        const float code = std::nearbyint(values[row + static_cast<size_t>(i)] / scale);
        const auto q = static_cast<int>(std::clamp(code, -limit, limit));
        if (!int4) codes->push_back(static_cast<uint8_t>(q));
        if (int4 && i % 2 == 0) codes->push_back(static_cast<uint8_t>(q + 8));
        if (int4 && i % 2 != 0) codes->back() |= static_cast<uint8_t>((q + 8) << 4);
      }
    }
  }
}

// The entries of weights.safetensors that hold one tensor.
std::vector<std::vector<uint8_t>> Entries(const std::vector<float>& values, int64_t columns,
                                          kernels::DType dtype) {
  std::vector<uint8_t> data;
  std::vector<uint8_t> scales;
  const auto append = [&data](const auto& value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    data.insert(data.end(), bytes, bytes + sizeof(value));
  };
  if (kernels::IsQuantized(dtype)) {
    Quantize(values, columns, dtype == kernels::DType::kI4, &data, &scales);
    return {data, scales};
  }
  for (const float value : values) {
    if (dtype == kernels::DType::kBF16) append(ToBf16(value));
    if (dtype == kernels::DType::kF32) append(value);
  }
  return {data};
}

}  // namespace

ModelConfig WriteModel(ModelConfig config, const TensorMap& tensors, const std::string& dir) {
  const std::vector<TensorSpec> specs = TensorSpecs(config.arch);
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const TensorSpec& spec : specs) {
    for (const StoredTensor& stored : StoredTensors(spec, StoredDType(spec, config.dtype))) {
      declarations.push_back({stored.name, stored.dtype, stored.shape});
    }
  }
  auto writer =
      SafetensorsWriter::Create(absl::StrCat(dir, "/", kWeightsFileName), declarations, {});
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (const TensorSpec& spec : specs) {
    const auto dtype = StoredDType(spec, config.dtype);
    for (const auto& bytes : Entries(tensors.at(spec.name), spec.shape.back(), dtype)) {
      const absl::Status status = writer->Write(AsBytes(bytes));
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  const absl::Status finished = writer->Finish();
  EXPECT_TRUE(finished.ok()) << finished;
  if (config.name.empty()) config.name = "test";
  config.files = {DigestOf(dir, kWeightsFileName)};
  if (config.has_tokenizer) config.files.push_back(DigestOf(dir, kTokenizerFileName));
  WriteFile(absl::StrCat(dir, "/", kModelFileName), ModelConfigToYaml(config));
  return config;
}

ArchitectureConfig SmallArchitecture() {
  ArchitectureConfig arch;
  arch.vocab_size = 31;
  arch.hidden_size = 24;
  arch.num_layers = 2;
  arch.num_heads = 3;
  arch.key_dim = 5;
  arch.value_dim = 7;
  arch.intermediate_size = 19;
  arch.eta = 0.1;
  return arch;
}

std::unique_ptr<kernels::Backend> MakeBackend(const std::string& name) {
  kernels::BackendOptions options;
  options.name = name;
  options.threads = 2;
  auto choice = kernels::CreateBackend(options);
  EXPECT_TRUE(choice.ok()) << choice.status();
  return std::move(choice->backend);
}

std::vector<std::string> HostBackends() {
  const char* chosen = std::getenv("OSDN_TEST_BACKENDS");
  if (chosen == nullptr) return {"reference", "cpu"};
  return absl::StrSplit(chosen, ',');
}

}  // namespace osdn::testing_support
