#include "tests/unit/engine/test_support.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/sha256.h"
#include "engine/tensor_specs.h"

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

std::string TestData(const std::string& name) {
  return absl::StrCat(OSDN_TEST_DATA_DIR, "/", name);
}

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

}  // namespace

ModelConfig WriteModel(ModelConfig config, const TensorMap& tensors, const std::string& dir) {
  const std::vector<TensorSpec> specs = TensorSpecs(config.arch);
  const auto is_bf16 = [&](const TensorSpec& spec) {
    return config.dtype == kernels::DType::kBF16 && spec.kind == TensorKind::kMatrix;
  };
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const TensorSpec& spec : specs) {
    declarations.push_back({spec.name, is_bf16(spec) ? "BF16" : "F32", spec.shape});
  }
  auto writer =
      SafetensorsWriter::Create(absl::StrCat(dir, "/", kWeightsFileName), declarations, {});
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (const TensorSpec& spec : specs) {
    const std::vector<float>& values = tensors.at(spec.name);
    std::vector<uint16_t> rounded;
    if (is_bf16(spec)) {
      for (const float value : values) rounded.push_back(ToBf16(value));
    }
    const absl::Status status = writer->Write(is_bf16(spec) ? AsBytes(rounded) : AsBytes(values));
    EXPECT_TRUE(status.ok()) << status;
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

std::vector<std::string> HostBackends() { return {"reference", "cpu"}; }

}  // namespace osdn::testing_support
