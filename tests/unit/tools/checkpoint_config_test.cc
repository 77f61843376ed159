#include "tools/checkpoint_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/tools/checkpoint_fixture.h"

namespace osdn::tools {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

CheckpointConfig Parse(const json& config) {
  absl::StatusOr<CheckpointConfig> parsed = ParseCheckpointConfig(config.dump());
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *std::move(parsed) : CheckpointConfig();
}

std::string Error(const json& config) {
  const absl::StatusOr<CheckpointConfig> parsed = ParseCheckpointConfig(config.dump());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << config;
  return std::string(parsed.status().message());
}

TEST(CheckpointConfigTest, GoldenConfigs) {
  for (const char* name : {"tiny", "tiny_apf_gate"}) {
    const absl::StatusOr<CheckpointConfig> config =
        ParseCheckpointConfig(ReadText(GoldenPath(name) + "/config.json"));
    ASSERT_TRUE(config.ok()) << config.status();
    const bool gate = std::string(name) == "tiny_apf_gate";
    EXPECT_EQ(config->arch.hidden_size, 64);
    EXPECT_EQ(config->arch.num_heads, 4);
    EXPECT_EQ(config->arch.num_layers, 2);
    EXPECT_EQ(config->arch.key_dim, 16);
    EXPECT_EQ(config->arch.value_dim, gate ? 32 : 16);
    EXPECT_EQ(config->arch.intermediate_size, 96);
    EXPECT_EQ(config->arch.vocab_size, 97);
    EXPECT_EQ(config->arch.use_gate, gate);
    EXPECT_EQ(config->arch.tie_embeddings, gate);
    EXPECT_EQ(config->arch.apf, gate ? Apf::kScalar : Apf::kNone);
    EXPECT_EQ(config->arch.eta, gate ? 0.05 : 0.003);
    EXPECT_EQ(config->bos_id, 1);
    EXPECT_THAT(config->eos_ids, ElementsAre(2));
  }
}

TEST(CheckpointConfigTest, AbsentKeysTakeFlaDefaults) {
  const CheckpointConfig config = Parse({{"model_type", "delta_net"}});
  EXPECT_EQ(config.arch.hidden_size, 2048);
  EXPECT_EQ(config.arch.num_heads, 16);
  EXPECT_EQ(config.arch.num_layers, 24);
  EXPECT_EQ(config.arch.key_dim, 128);
  EXPECT_EQ(config.arch.value_dim, 128);
  EXPECT_EQ(config.arch.vocab_size, 32000);
  EXPECT_EQ(config.arch.conv_size, 4);
  EXPECT_EQ(config.arch.intermediate_size, 5632);  // int(2048 * 4 * 2 / 3) = 5461, to 256
  EXPECT_EQ(config.arch.norm_eps, 1e-6);
  EXPECT_TRUE(config.arch.use_beta);
  EXPECT_TRUE(config.arch.use_short_conv);
  EXPECT_FALSE(config.arch.use_gate);
  EXPECT_FALSE(config.arch.conv_bias);
  EXPECT_FALSE(config.arch.allow_neg_eigval);
  EXPECT_FALSE(config.arch.tie_embeddings);
  EXPECT_EQ(config.arch.qk_norm, kernels::QkNorm::kL2);
  EXPECT_EQ(config.arch.qk_activation, kernels::Activation::kSilu);
  EXPECT_EQ(config.bos_id, 1);
  EXPECT_THAT(config.eos_ids, ElementsAre(2));
}

TEST(CheckpointConfigTest, DeltaNetHasNoPreconditioner) {
  EXPECT_TRUE(Parse({{"model_type", "delta_net"}}).arch.is_plain_delta_net());
  EXPECT_TRUE(Parse({{"model_type", "delta_net"}, {"osdn", {{"eta", 0.0}, {"apf", "none"}}}})
                  .arch.is_plain_delta_net());
  EXPECT_THAT(Error({{"model_type", "delta_net"}, {"osdn", {{"eta", 0.003}}}}),
              HasSubstr("osdn.eta"));
  const ArchitectureConfig osdn = Parse({{"model_type", "osdn"}}).arch;
  EXPECT_EQ(osdn.eta, 0.003);
  EXPECT_EQ(osdn.d_min, 0.5);
  EXPECT_EQ(osdn.d_max, 2.0);
}

TEST(CheckpointConfigTest, SumNormOfDeltaNetNeedsPositiveKeys) {
  json config = TinyConfig();
  config["qk_norm"] = "sum";
  EXPECT_EQ(Parse(config).arch.qk_norm, kernels::QkNorm::kSum);  // osdn says what it means
  config["model_type"] = "delta_net";
  EXPECT_THAT(Error(config), HasSubstr("qk_norm: sum with qk_activation silu"));
  for (const char* activation : {"relu", "elu"}) {
    config["qk_activation"] = activation;
    EXPECT_EQ(Parse(config).arch.qk_norm, kernels::QkNorm::kSum);
  }
}

TEST(CheckpointConfigTest, ExpandedSizesAreRounded) {
  json config = TinyConfig();
  config["hidden_size"] = 48;
  config["expand_k"] = 1.0 / 3;
  config["expand_v"] = 0.7 / 0.7000001;
  EXPECT_THAT(Error(config),
              testing::AllOf(HasSubstr("expand_v: "), testing::Not(HasSubstr("expand_k"))));
  config["expand_v"] = 1.0000000001;
  EXPECT_EQ(Parse(config).arch.key_dim, 8);
  EXPECT_EQ(Parse(config).arch.value_dim, 24);
}

TEST(CheckpointConfigTest, EveryVariant) {
  json config = TinyConfig();
  config["expand_k"] = 0.5;
  config["expand_v"] = 3;
  config["conv_size"] = 2;
  config["conv_bias"] = true;
  config["use_beta"] = false;
  config["use_gate"] = true;
  config["use_short_conv"] = false;
  config["allow_neg_eigval"] = true;
  config["tie_word_embeddings"] = true;
  config["qk_norm"] = "sum";
  config["norm_eps"] = 1e-5;
  config["osdn"] = {{"eta", 0.1}, {"eps", 1e-5},     {"d_min", 0.25},
                    {"d_max", 4}, {"apf", "scalar"}, {"apf_anchor", 0}};
  const ArchitectureConfig arch = Parse(config).arch;
  EXPECT_EQ(arch.key_dim, 2);
  EXPECT_EQ(arch.value_dim, 12);
  EXPECT_EQ(arch.conv_size, 2);
  EXPECT_TRUE(arch.conv_bias);
  EXPECT_FALSE(arch.use_beta);
  EXPECT_TRUE(arch.use_gate);
  EXPECT_FALSE(arch.use_short_conv);
  EXPECT_TRUE(arch.allow_neg_eigval);
  EXPECT_TRUE(arch.tie_embeddings);
  EXPECT_EQ(arch.qk_norm, kernels::QkNorm::kSum);
  EXPECT_EQ(arch.norm_eps, 1e-5);
  EXPECT_EQ(arch.eta, 0.1);
  EXPECT_EQ(arch.eps, 1e-5);
  EXPECT_EQ(arch.d_min, 0.25);
  EXPECT_EQ(arch.d_max, 4);
  EXPECT_EQ(arch.apf, Apf::kScalar);
  EXPECT_EQ(arch.apf_anchor, 0);
  const std::vector<std::pair<std::string, kernels::Activation>> activations = {
      {"silu", kernels::Activation::kSilu},
      {"relu", kernels::Activation::kRelu},
      {"elu", kernels::Activation::kEluPlusOne},
      {"identity", kernels::Activation::kIdentity}};
  for (const auto& [name, activation] : activations) {
    config["qk_activation"] = name;
    EXPECT_EQ(Parse(config).arch.qk_activation, activation) << name;
  }
}

TEST(CheckpointConfigTest, IntermediateSize) {
  json config = TinyConfig();
  config["intermediate_size"] = nullptr;
  config["hidden_size"] = 1024;
  EXPECT_EQ(Parse(config).arch.intermediate_size, 2816);  // int(2730.67) to a multiple of 256
  config["hidden_ratio"] = nullptr;
  EXPECT_EQ(Parse(config).arch.intermediate_size, 2816);
  config["hidden_ratio"] = 3;
  EXPECT_EQ(Parse(config).arch.intermediate_size, 2048);  // exactly a multiple already
  config["intermediate_size"] = 100;
  EXPECT_EQ(Parse(config).arch.intermediate_size, 100);
}

TEST(CheckpointConfigTest, SpecialTokens) {
  json config = TinyConfig();
  EXPECT_THAT(Parse(config).eos_ids, ElementsAre(2, 3));
  config["eos_token_id"] = nullptr;
  config["bos_token_id"] = nullptr;
  EXPECT_THAT(Parse(config).eos_ids, IsEmpty());
  EXPECT_EQ(Parse(config).bos_id, std::nullopt);
  config["eos_token_id"] = 11;  // the vocabulary has 0 to 10
  EXPECT_THAT(Error(config), HasSubstr("eos_token_id: 11, want an integer from 0 to 10"));
  config["eos_token_id"] = {2, -1};
  EXPECT_THAT(Error(config), HasSubstr("eos_token_id: -1"));
}

TEST(CheckpointConfigTest, InertKeysAreAccepted) {
  json config = TinyConfig();
  config["fuse_norm"] = false;
  config["use_cache"] = true;
  config["initializer_range"] = 0.02;
  config["torch_dtype"] = "bfloat16";
  config["architectures"] = {"OsdnForCausalLM"};
  config["transformers_version"] = "4.50.0";
  config["pad_token_id"] = nullptr;
  config["attn_mode"] = "chunk";
  config["attn"] = nullptr;
  config["hidden_act"] = "swish";
  config["use_output_norm"] = true;
  config["max_position_embeddings"] = 2048;
  Parse(config);
}

// Keys that change the computation, unknown keys and wrong values: each alone, refused by its name.
TEST(CheckpointConfigTest, RefusesByName) {
  const std::vector<std::pair<std::string, json>> bad = {
      {"attn", {{"layers", {0}}, {"num_heads", 2}}},
      {"use_output_norm", false},
      {"hidden_act", "gelu"},
      {"norm_first", true},
      {"share_conv_kernel", true},
      {"quantization_config", {{"bits", 4}}},
      {"attnres_block_size", 4},
      {"rope_theta", 10000.0},
      {"model_type", "gla"},
      {"qk_norm", "rms"},
      {"qk_activation", "gelu"},
      {"hidden_size", 0},
      {"hidden_size", "8"},
      {"hidden_size", 8.5},
      {"hidden_size", nullptr},
      {"vocab_size", 1e18},
      {"vocab_size", 18446744073709551615ULL},
      {"num_heads", -2},
      {"expand_k", 1.2},  // 9 is not 2 heads
      {"expand_v", 0},
      {"use_gate", 1},
      {"norm_eps", "small"},
      {"osdn", 3},
  };
  for (const auto& [key, value] : bad) {
    json config = TinyConfig();
    config[key] = value;
    EXPECT_THAT(Error(config), HasSubstr("\n  " + key + ": ")) << key << " = " << value;
  }
  json config = TinyConfig();
  config["osdn"] = {{"etta", 0.1}};
  EXPECT_THAT(Error(config), HasSubstr("\n  osdn.etta: "));
  config["osdn"] = {{"apf", "vector"}};
  EXPECT_THAT(Error(config), HasSubstr("osdn.apf: \"vector\", want one of none, scalar"));
  config.erase("model_type");
  EXPECT_THAT(Error(config), HasSubstr("model_type: missing"));
}

TEST(CheckpointConfigTest, ListsAllProblemsAtOnce) {
  json config = TinyConfig();
  config["use_output_norm"] = false;
  config["hidden_act"] = "relu";
  config["no_such_key"] = 1;
  config["osdn"] = {{"eta", "high"}};
  const std::string error = Error(config);
  for (const char* key : {"use_output_norm", "hidden_act", "no_such_key", "osdn.eta"}) {
    EXPECT_THAT(error, HasSubstr(key));
  }
}

TEST(CheckpointConfigTest, NotJson) {
  for (const char* text : {"", "{", "[1]", "nul", "{\"model_type\": \"osdn\"} x"}) {
    const absl::StatusOr<CheckpointConfig> parsed = ParseCheckpointConfig(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("config.json")) << text;
  }
}

TEST(GenerationConfigTest, ReplacesSpecialTokens) {
  CheckpointConfig config = Parse(TinyConfig());
  ASSERT_TRUE(
      ApplyGenerationConfig(R"({"eos_token_id": [4, 5], "temperature": 0.6})", &config).ok());
  EXPECT_THAT(config.eos_ids, ElementsAre(4, 5));
  EXPECT_EQ(config.bos_id, 1);
  ASSERT_TRUE(ApplyGenerationConfig(R"({"bos_token_id": null})", &config).ok());
  EXPECT_EQ(config.bos_id, std::nullopt);
  const absl::Status status = ApplyGenerationConfig(R"({"eos_token_id": 99})", &config);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("generation_config.json:\n  eos_token_id: 99"));
}

TEST(AddBosTokenTest, ReadsWhatIsThere) {
  EXPECT_EQ(*ParseAddBosToken(R"({"add_bos_token": false})"), std::optional<bool>(false));
  EXPECT_EQ(*ParseAddBosToken(R"({"model_max_length": 5})"), std::nullopt);
  EXPECT_FALSE(ParseAddBosToken(R"({"add_bos_token": "no"})").ok());
}

}  // namespace
}  // namespace osdn::tools
