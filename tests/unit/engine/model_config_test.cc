#include "engine/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/tensor_specs.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::SmallArchitecture;
using testing_support::TempDir;
using testing_support::WriteFile;

constexpr char kDigest[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

ModelConfig FullConfig() {
  ModelConfig config;
  config.name = "full: \"quoted\" # not a comment";
  config.arch = SmallArchitecture();
  config.arch.use_gate = true;
  config.arch.use_beta = false;
  config.arch.use_short_conv = false;
  config.arch.conv_bias = true;
  config.arch.allow_neg_eigval = true;
  config.arch.tie_embeddings = true;
  config.arch.conv_size = 3;
  config.arch.norm_eps = 1e-5;
  config.arch.qk_norm = kernels::QkNorm::kSum;
  config.arch.qk_activation = kernels::Activation::kEluPlusOne;
  config.arch.eta = 0.1 + 0.2;  // needs all 17 digits
  config.arch.eps = 1e-7;
  config.arch.d_min = 1.0 / 3;
  config.arch.d_max = 3.5;
  config.arch.apf = Apf::kScalar;
  config.arch.apf_anchor = 0.25;
  config.dtype = kernels::DType::kBF16;
  config.has_tokenizer = true;
  config.add_bos = false;
  config.bos_id = 1;
  config.eos_ids = {2, 30};
  ChatTemplate chat;
  chat.roles["user"] = {{{true, "<|user|>"}, {false, "\n"}}, {{true, "<|end|>"}}};
  chat.roles["true"] = {{{false, "yes: 1.0"}}, {}};
  chat.generation_prompt = {{true, "<|assistant|>"}};
  chat.stop_tokens = {"<|end|>", "</s>"};
  config.chat = chat;
  config.source = "made by hand\nin two lines";
  config.files = {{kWeightsFileName, 123, kDigest}, {kTokenizerFileName, 4, kDigest}};
  return config;
}

absl::StatusOr<ModelConfig> LoadText(const std::string& text) {
  const TempDir dir;
  WriteFile(dir.File(kModelFileName), text);
  return LoadModelConfig(dir.path());
}

std::string ErrorOf(const std::string& text) {
  const auto config = LoadText(text);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << config.status();
  return std::string(config.status().message());
}

std::string Replaced(const std::string& text, const std::string& from, const std::string& to) {
  const std::string result = absl::StrReplaceAll(text, {{from, to}});
  EXPECT_NE(result, text) << "\"" << from << "\" is not in\n" << text;
  return result;
}

TEST(ModelConfigTest, RoundTripsEveryValue) {
  const ModelConfig want = FullConfig();
  const std::string text = ModelConfigToYaml(want);
  const auto got = LoadText(text);
  ASSERT_TRUE(got.ok()) << got.status() << "\n" << text;
  // The text has every value; equal texts are equal configs.
  EXPECT_EQ(ModelConfigToYaml(*got), text);
  EXPECT_EQ(got->name, want.name);
  EXPECT_EQ(got->source, want.source);
  EXPECT_EQ(got->arch.eta, want.arch.eta);
  EXPECT_EQ(got->arch.d_min, want.arch.d_min);
  EXPECT_EQ(got->arch.qk_activation, want.arch.qk_activation);
  EXPECT_EQ(got->arch.qk_norm, want.arch.qk_norm);
  EXPECT_EQ(got->arch.apf, Apf::kScalar);
  EXPECT_FALSE(got->arch.use_beta);
  EXPECT_TRUE(got->arch.allow_neg_eigval);
  EXPECT_EQ(got->dtype, kernels::DType::kBF16);
  EXPECT_EQ(got->bos_id, 1);
  EXPECT_FALSE(got->add_bos);
  EXPECT_THAT(got->eos_ids, ElementsAre(2, 30));
  ASSERT_TRUE(got->chat.has_value());
  ASSERT_EQ(got->chat->roles.size(), 2U);
  EXPECT_EQ(got->chat->roles.at("user").prefix[1].value, "\n");
  EXPECT_TRUE(got->chat->roles.at("user").prefix[0].is_token);
  EXPECT_FALSE(got->chat->roles.at("true").prefix[0].is_token);
  EXPECT_THAT(got->chat->stop_tokens, ElementsAre("<|end|>", "</s>"));
  EXPECT_EQ(got->files[0].bytes, 123);
  EXPECT_EQ(got->files[1].sha256, kDigest);
  EXPECT_EQ(got->model_id(), want.model_id());
}

TEST(ModelConfigTest, DeltaNetHasNoOsdnSection) {
  ModelConfig config = FullConfig();
  config.arch = SmallArchitecture();
  config.arch.eta = 0;
  const std::string text = ModelConfigToYaml(config);
  EXPECT_THAT(text, AllOf(HasSubstr("type: delta_net"), Not(HasSubstr("osdn:"))));
  const auto got = LoadText(text);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->arch.is_plain_delta_net());

  // A DeltaNet with other constants keeps them.
  config.arch.d_max = 3;
  const auto kept = LoadText(ModelConfigToYaml(config));
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->arch.d_max, 3);
  EXPECT_TRUE(kept->arch.is_plain_delta_net());
}

TEST(ModelConfigTest, OsdnSectionContradictsDeltaNet) {
  EXPECT_THAT(ErrorOf(Replaced(ModelConfigToYaml(FullConfig()), "type: osdn", "type: delta_net")),
              HasSubstr("osdn: not allowed with architecture.type delta_net"));
}

TEST(ModelConfigTest, MissingModelSaysHowToMakeOne) {
  const TempDir dir;
  for (const std::string& path : {dir.path(), dir.File("absent")}) {
    const auto config = LoadModelConfig(path);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound) << config.status();
    EXPECT_THAT(std::string(config.status().message()),
                AllOf(HasSubstr(path), HasSubstr("osdn-tools convert")));
  }
}

TEST(ModelConfigTest, QuantizedDTypesNeedVersionTwo) {
  using kernels::DType;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4}) {
    ModelConfig config = FullConfig();
    config.dtype = dtype;
    const std::string yaml = ModelConfigToYaml(config);
    EXPECT_THAT(yaml,
                HasSubstr(kernels::IsQuantized(dtype) ? "format_version: 2" : "format_version: 1"));
    const auto got = LoadText(yaml);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->dtype, dtype);
  }
}

TEST(ModelConfigTest, ReferenceSizes) {
  struct Size {
    const char* name;
    int64_t least, most;  // parameters
  };
  for (const Size& size :
       {Size{"osdn-100m", 95'000'000, 115'000'000}, Size{"osdn-340m", 330'000'000, 350'000'000},
        Size{"osdn-1.3b", 1'250'000'000, 1'350'000'000}}) {
    const auto config =
        LoadArchitectureFile(absl::StrCat(OSDN_MODELS_DIR, "/configs/", size.name, ".yaml"));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->name, size.name);
    int64_t parameters = 0;
    for (const TensorSpec& spec : TensorSpecs(config->arch)) {
      parameters += StoredBytes(spec, kernels::DType::kF32) / 4;
    }
    EXPECT_GE(parameters, size.least) << size.name;
    EXPECT_LE(parameters, size.most) << size.name;
  }
}

TEST(ModelConfigTest, ArchitectureFileErrorsAllAtOnce) {
  const TempDir dir;
  const std::string path = dir.File("shape.yaml");
  WriteFile(path, "name: x\ndtype: f32\narchitecture: {type: osdn, hidden_size: 0}\n");
  const auto config = LoadArchitectureFile(path);
  EXPECT_THAT(
      std::string(config.status().message()),
      AllOf(HasSubstr(path), HasSubstr("dtype: unknown key"), HasSubstr("architecture.vocab_size"),
            HasSubstr("hidden_size: 0"), HasSubstr("osdn")));
  EXPECT_EQ(LoadArchitectureFile(dir.File("no")).status().code(), absl::StatusCode::kNotFound);
}

TEST(ModelConfigTest, NewerFormatIsAPrecondition) {
  const auto config =
      LoadText(Replaced(ModelConfigToYaml(FullConfig()), "format_version: 1", "format_version: 3"));
  EXPECT_EQ(config.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("newer osdn-server"));
}

TEST(ModelConfigTest, EveryRangeViolationAtOnce) {
  ModelConfig config = FullConfig();
  config.arch.hidden_size = 0;
  config.arch.num_layers = 5000;
  config.arch.conv_size = -1;
  config.arch.eta = -0.5;
  config.arch.d_min = 1.5;
  config.arch.norm_eps = 0;
  const std::string error = ErrorOf(ModelConfigToYaml(config));
  EXPECT_THAT(error, AllOf(HasSubstr("architecture.hidden_size: 0 is out of range [1, "),
                           HasSubstr("architecture.num_layers: 5000"),
                           HasSubstr("architecture.conv_size: -1"), HasSubstr("osdn.eta: -0.5"),
                           HasSubstr("osdn.d_min: 1.5 is out of range (0, 1]"),
                           HasSubstr("architecture.norm_eps: 0")));
}

TEST(ModelConfigTest, ValidateRefusesNonFiniteNumbers) {
  ArchitectureConfig arch = SmallArchitecture();
  ASSERT_TRUE(ValidateArchitecture(arch).ok());
  arch.eta = std::numeric_limits<double>::quiet_NaN();
  arch.d_max = std::numeric_limits<double>::infinity();
  const std::string error(ValidateArchitecture(arch).message());
  EXPECT_THAT(error, AllOf(HasSubstr("osdn.eta"), HasSubstr("osdn.d_max")));
}

struct EditCase {
  std::string name;
  std::string from;
  std::string to;
  std::string error;
};

class ModelConfigEditTest : public testing::TestWithParam<EditCase> {};

TEST_P(ModelConfigEditTest, IsRefusedByName) {
  const std::string text =
      Replaced(ModelConfigToYaml(FullConfig()), GetParam().from, GetParam().to);
  EXPECT_THAT(ErrorOf(text), AllOf(HasSubstr(GetParam().error), HasSubstr(kModelFileName)));
}

INSTANTIATE_TEST_SUITE_P(
    All, ModelConfigEditTest,
    testing::Values(
        EditCase{"NotYaml", "format:", "{[", "yaml-cpp"},
        EditCase{"WrongFormat", "format: osdn-model", "format: gguf", "format: \"gguf\""},
        EditCase{"VersionZero", "format_version: 1", "format_version: 0", "format_version: 0"},
        EditCase{"VersionText", "format_version: 1", "format_version: one", "\"one\""},
        EditCase{"UnknownKey", "dtype:", "colour: red\ndtype:", "colour: unknown key"},
        EditCase{"UnknownNested",
                 "  num_heads:", "  heads: 3\n  num_heads:", "architecture.heads: unknown key"},
        EditCase{"Missing", "  num_heads: 3\n", "", "architecture.num_heads: required"},
        EditCase{"Duplicate", "  num_heads: 3\n", "  num_heads: 3\n  num_heads: 3\n",
                 "architecture.num_heads: given twice"},
        EditCase{"NotANumber", "num_heads: 3", "num_heads: three",
                 "\"three\" is not a whole number"},
        EditCase{"Fraction", "num_heads: 3", "num_heads: 3.0", "\"3.0\" is not a whole number"},
        EditCase{"HugeNumber", "num_heads: 3", "num_heads: 99999999999999999999",
                 "is not a whole number"},
        EditCase{"MapForNumber", "num_heads: 3", "num_heads: {a: 1}", "must be a whole number"},
        EditCase{"BadBool", "use_gate: true", "use_gate: 1", "neither true nor false"},
        EditCase{"BadType", "type: osdn", "type: mamba", "\"mamba\" is not one of osdn, delta_net"},
        EditCase{"BadDtype", "dtype: bf16", "dtype: int3",
                 "dtype: \"int3\" is not one of f32, bf16, int8, int4"},
        EditCase{"BadActivation", "qk_activation: elu", "qk_activation: gelu", "\"gelu\""},
        EditCase{"BadNorm", "qk_norm: sum", "qk_norm: l3", "\"l3\" is not one of l2, sum"},
        EditCase{"BadApf", "apf: scalar", "apf: vector", "\"vector\" is not one of none, scalar"},
        EditCase{"BadEta", "eta: 0.30000000000000004", "eta: nan", "osdn.eta"},
        EditCase{"BosOutside", "bos_id: 1", "bos_id: 31",
                 "tokenizer.bos_id: 31 is not in the vocabulary of 31 tokens"},
        EditCase{"EosOutside", "eos_ids: [2, 30]", "eos_ids: [2, -1]", "tokenizer.eos_ids[1]: -1"},
        EditCase{"ChatWithoutTokenizer", "type: sentencepiece", "type: none",
                 "chat: needs tokenizer"},
        EditCase{"ChatWithoutBos", "  bos_id: 1\n", "", "chat.bos: true"},
        EditCase{"PartWithBoth", "{token: \"<|user|>\"}", "{token: a, text: b}",
                 "chat.roles.user.prefix[0]: needs exactly one"},
        EditCase{"PartUnknown", "{token: \"<|user|>\"}", "{token: a, colour: b}",
                 "chat.roles.user.prefix[0].colour: unknown key"},
        EditCase{"NoWeightsEntry", "weights.safetensors", "other.safetensors",
                 "files: no entry for weights.safetensors"},
        EditCase{"NoTokenizerEntry", "tokenizer.model\"", "other.model\"",
                 "files: no entry for tokenizer.model"},
        EditCase{"EscapingFile", "name: \"tokenizer.model\"", "name: \"../tokenizer.model\"",
                 "not a plain file name"},
        EditCase{"FileTwice", "name: \"tokenizer.model\"", "name: \"weights.safetensors\"",
                 "files[1].name: given twice"},
        EditCase{"ShortDigest", "89abcdef\"", "\"", "files[0].sha256: not 64"},
        EditCase{"NegativeBytes", "bytes: 123", "bytes: -1", "files[0].bytes: negative"}),
    [](const auto& param_info) { return param_info.param.name; });

TEST(ModelConfigTest, LargeFileIsRefused) {
  EXPECT_THAT(ErrorOf(std::string((1 << 20) + 1, '#')), HasSubstr("at most 1048576"));
}

TEST(ModelConfigTest, DeepNestingIsRefused) {
  EXPECT_THAT(ErrorOf("format: " + std::string(200000, '[')), HasSubstr(kModelFileName));
}

// Random edits of a valid file load or fail with a status; they never crash or throw.
TEST(ModelConfigFuzzTest, MutationsNeverCrash) {
  constexpr uint64_t kSeed = 20260103;
  constexpr int kRounds = 600;
  SCOPED_TRACE(absl::StrCat("seed ", kSeed));
  const TempDir dir;
  const std::string valid = ModelConfigToYaml(FullConfig());
  const std::string alphabet = ":-[]{}\"'\n #&*!|>%@`,?~0123456789abcxyz\t\\\xFF";
  std::mt19937_64 random(kSeed);
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::string text = valid;
    const size_t changes = 1 + random() % 4;
    for (size_t i = 0; i < changes && !text.empty(); ++i) {
      const size_t at = random() % text.size();
      const size_t count = 1 + random() % 6;
      switch (random() % 4) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.erase(at, count);
          break;
        case 2:
          text.insert(at, count, alphabet[random() % alphabet.size()]);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), 20));
          break;
      }
    }
    WriteFile(dir.File(kModelFileName), text);
    const auto config = LoadModelConfig(dir.path());
    if (config.ok()) {
      ++accepted;
      EXPECT_TRUE(ValidateArchitecture(config->arch).ok()) << text;
    } else {
      ++refused;
      EXPECT_FALSE(config.status().message().empty());
    }
  }
  EXPECT_GT(refused, kRounds / 4);
  EXPECT_GT(accepted, 0) << "the mutations never left a valid file: the test sees one path only";
}

TEST(ModelIdTest, DependsOnWeightsAndNumbersOnly) {
  const ModelConfig base = FullConfig();
  const std::string id = base.model_id();
  EXPECT_EQ(id.size(), 64U);

  ModelConfig same = base;
  same.name = "renamed";
  same.source = "elsewhere";
  same.chat.reset();
  same.eos_ids = {7};
  same.files[1].sha256[0] = 'f';
  EXPECT_EQ(same.model_id(), id);

  ModelConfig weights = base;
  weights.files[0].sha256[0] = 'f';
  EXPECT_NE(weights.model_id(), id);

  const std::vector<void (*)(ArchitectureConfig*)> changes = {
      [](ArchitectureConfig* a) { a->eta = 0.31; },
      [](ArchitectureConfig* a) { a->d_max = 4; },
      [](ArchitectureConfig* a) { a->norm_eps = 1e-6; },
      [](ArchitectureConfig* a) { a->allow_neg_eigval = false; },
      [](ArchitectureConfig* a) { a->apf = Apf::kNone; },
      [](ArchitectureConfig* a) { a->apf_anchor = 1; },
      [](ArchitectureConfig* a) { a->qk_activation = kernels::Activation::kRelu; },
      [](ArchitectureConfig* a) { ++a->num_heads; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    ModelConfig changed = base;
    changes[i](&changed.arch);
    EXPECT_NE(changed.model_id(), id) << "change " << i;
  }
}

TEST(ModelConfigNamesTest, RoundTrip) {
  using kernels::Activation;
  for (const Activation a :
       {Activation::kIdentity, Activation::kSilu, Activation::kRelu, Activation::kEluPlusOne}) {
    EXPECT_EQ(ParseActivation(ActivationName(a)), a);
  }
  EXPECT_EQ(ParseQkNorm("l2"), kernels::QkNorm::kL2);
  EXPECT_EQ(ParseQkNorm("sum"), kernels::QkNorm::kSum);
  EXPECT_EQ(ParseApf(ApfName(Apf::kScalar)), Apf::kScalar);
  EXPECT_FALSE(ParseActivation("gelu").has_value());
  EXPECT_FALSE(ParseQkNorm("").has_value());
}

}  // namespace
}  // namespace osdn
