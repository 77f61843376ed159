// The binary itself: exit codes, output, signals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/safetensors.h"
#include "tests/unit/tools/checkpoint_fixture.h"

namespace osdn::tools {
namespace {

using testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

class CliTest : public testing::Test {
 protected:
  // Runs osdn-tools in a shell; `arguments` may redirect standard input.
  Outcome Run(const std::string& arguments) {
    const std::string command = std::string(OSDN_TOOLS_BINARY) + " " + arguments + " >" +
                                (dir_ / "out") + " 2>" + (dir_ / "err");
    const int status = std::system(command.c_str());
    Outcome outcome;
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    outcome.out = ReadText(dir_ / "out");
    outcome.err = ReadText(dir_ / "err");
    return outcome;
  }

  void ConvertGolden(const std::string& name) {
    const Outcome outcome = Run("convert " + GoldenPath(name) + " " + (dir_ / "model"));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }

  TemporaryDirectory dir_;
};

TEST_F(CliTest, UsageErrorsExitWithTwo) {
  for (const char* arguments : {"",
                                "nonsense",
                                "convert",
                                "convert a",
                                "convert a b --dtype int3",
                                "quantize a b",
                                "quantize a --dtype int8",
                                "quantize a b --dtype int2",
                                "synth",
                                "synth a",
                                "synth a --config b --dtype int2",
                                "bench",
                                "bench --model a --batch x",
                                "eval",
                                "eval perplexity --model a",
                                "eval perplexity --model a --text b --ids-file c",
                                "bench --model a --read-buffer-mib 0",
                                "bench --model a --prompt 5 --no-prefill",
                                "inspect",
                                "score",
                                "score --model a --ids-file b --logits-out c --step 0",
                                "generate",
                                "generate --prompt x",
                                "generate --address a --model b",
                                "generate --address a --prompt b --ids 1",
                                "chat",
                                "health",
                                "inspect a --no-such-flag",
                                "convert a b c"}) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_FALSE(outcome.err.empty()) << arguments;
  }
}

TEST_F(CliTest, HelpAndVersion) {
  EXPECT_EQ(Run("--version").code, 0);
  EXPECT_THAT(Run("--version").out, HasSubstr("osdn-tools "));
  for (const char* command : {"convert", "quantize", "synth", "inspect", "score", "bench", "eval",
                              "generate", "chat", "health"}) {
    EXPECT_EQ(Run(std::string(command) + " --help").code, 0) << command;
    EXPECT_THAT(Run("--help").out, HasSubstr(command));
  }
}

TEST_F(CliTest, FailuresExitWithOneAndNameTheThing) {
  const Outcome convert = Run("convert " + (dir_ / "absent") + " " + (dir_ / "model"));
  EXPECT_EQ(convert.code, 1);
  EXPECT_THAT(convert.err, HasSubstr(dir_ / "absent"));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "model"));
  const Outcome inspect = Run("inspect " + dir_.path());
  EXPECT_EQ(inspect.code, 1);
  EXPECT_THAT(inspect.err, HasSubstr("model.yaml"));
  for (const char* command : {"health", "chat", "generate --prompt x"}) {
    const Outcome client = Run(std::string(command) + " --address 127.0.0.1:1 </dev/null");
    EXPECT_EQ(client.code, 1) << command;
    EXPECT_THAT(client.err, HasSubstr("127.0.0.1:1")) << command;
  }
}

TEST_F(CliTest, ConvertInspectScore) {
  ConvertGolden("tiny");
  const Outcome inspect = Run("inspect " + (dir_ / "model") + " --json --verify");
  ASSERT_EQ(inspect.code, 0) << inspect.err;
  EXPECT_EQ(nlohmann::json::parse(inspect.out)["architecture"]["layers"], 2);

  WriteText(dir_ / "ids", "1 5\n 96 0");
  const std::string score = "score --model " + (dir_ / "model") + " --ids-file " + (dir_ / "ids") +
                            " --logits-out " + (dir_ / "logits.safetensors");
  const Outcome good = Run(score + " --backend reference --threads 1");
  ASSERT_EQ(good.code, 0) << good.err;
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(dir_ / "logits.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->Find("logits")->shape, testing::ElementsAre(4, 97));

  WriteText(dir_ / "ids", "1 5 97");
  const Outcome bad = Run(score);
  EXPECT_EQ(bad.code, 1);
  EXPECT_THAT(bad.err, HasSubstr("token id 3: \"97\", want a number from 0 to 96"));
  EXPECT_THAT(bad.err, HasSubstr(dir_ / "ids"));
}

TEST_F(CliTest, Quantize) {
  ConvertGolden("tiny");
  const Outcome good =
      Run("quantize " + (dir_ / "model") + " " + (dir_ / "small") + " --dtype int8 --name eight");
  ASSERT_EQ(good.code, 0) << good.err;
  EXPECT_THAT(good.out, HasSubstr("eight"));
  EXPECT_THAT(good.err, HasSubstr("relative RMS error"));
  const Outcome inspect = Run("inspect " + (dir_ / "small") + " --json --verify");
  EXPECT_EQ(nlohmann::json::parse(inspect.out)["dtype"], "int8");

  const Outcome again = Run("quantize " + (dir_ / "small") + " " + (dir_ / "x") + " --dtype int4");
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.err, HasSubstr("start from the bf16 or f32 model"));
  const Outcome absent = Run("quantize " + (dir_ / "no") + " " + (dir_ / "x") + " --dtype int4");
  EXPECT_EQ(absent.code, 1);
  EXPECT_THAT(absent.err, HasSubstr(dir_ / "no"));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
}

TEST_F(CliTest, Synth) {
  WriteText(
      dir_ / "shape.yaml",
      "name: tiny\narchitecture: {type: osdn, vocab_size: 50, hidden_size: 32, num_layers: 1, "
      "num_heads: 2, key_dim: 8, value_dim: 8, intermediate_size: 40}\nosdn: {eta: 0.1}\n");
  const std::string synth = "synth --config " + (dir_ / "shape.yaml") + " --dtype int4 ";
  const Outcome good = Run(synth + (dir_ / "made"));
  ASSERT_EQ(good.code, 0) << good.err;
  const Outcome inspect = Run("inspect " + (dir_ / "made") + " --json --verify");
  EXPECT_EQ(nlohmann::json::parse(inspect.out)["dtype"], "int4");
  const Outcome again = Run(synth + (dir_ / "made"));
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.err, HasSubstr("--overwrite"));
  const Outcome absent = Run("synth --config " + (dir_ / "no.yaml") + " " + (dir_ / "x"));
  EXPECT_EQ(absent.code, 1);
  EXPECT_THAT(absent.err, HasSubstr("no.yaml"));
}

TEST_F(CliTest, Bench) {
  ConvertGolden("tiny");
  const std::string bench =
      "bench --model " + (dir_ / "model") +
      " --backend reference --batch 1,2 --position 7 --prompt 3 --repeat 1 --seconds 0.01";
  const Outcome text = Run(bench);
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("by op"));
  EXPECT_THAT(text.out, HasSubstr("ceilings         none"));
  const Outcome json = Run(bench + " --json --no-prefill");
  EXPECT_EQ(json.code, 2) << "prompts and no prefill";
  const Outcome bad = Run("bench --model " + (dir_ / "model") + " --batch 0 --prompt 0,5");
  EXPECT_EQ(bad.code, 1);
  EXPECT_THAT(bad.err, HasSubstr("batch: 0"));
  EXPECT_THAT(bad.err, HasSubstr("prompt: 0"));
}

TEST_F(CliTest, EvalPerplexity) {
  ConvertGolden("tiny");
  WriteText(dir_ / "ids", "1 5 96 0\n2 3\n");
  const std::string eval = "eval perplexity --model " + (dir_ / "model") + " --backend reference ";
  const Outcome good =
      Run(eval + "--json --against " + (dir_ / "model") + " --ids-file - <" + (dir_ / "ids"));
  ASSERT_EQ(good.code, 0) << good.err;
  const nlohmann::json root = nlohmann::json::parse(good.out);
  EXPECT_EQ(root["tokens"], 4);
  EXPECT_EQ(root["against"]["mean_kl"], 0.0);
  const Outcome bad = Run(eval + "--text " + (dir_ / "ids"));
  EXPECT_EQ(bad.code, 1);
  EXPECT_THAT(bad.err, HasSubstr("--ids-file"));
}

TEST_F(CliTest, GenerateInThisProcess) {
  ConvertGolden("tiny_apf_gate");
  const std::string generate = "generate --model " + (dir_ / "model") +
                               " --backend reference --temperature 0 --max-tokens 5";
  const Outcome json = Run(generate + " --ids 1,2,3 --ignore-eos --json");
  ASSERT_EQ(json.code, 0) << json.err;
  const nlohmann::json root = nlohmann::json::parse(json.out);
  EXPECT_EQ(root["token_ids"].size(), 5U);
  EXPECT_EQ(root["finish_reason"], "length");
  EXPECT_EQ(root["usage"]["prompt_tokens"], 3);

  // Without a tokenizer the stream is made of ids, the same ones.
  const Outcome stream = Run(generate + " --ids 1 2 3 --ignore-eos");
  ASSERT_EQ(stream.code, 0) << stream.err;
  std::string ids;
  for (const nlohmann::json& id : root["token_ids"]) ids += (ids.empty() ? "" : " ") + id.dump();
  EXPECT_EQ(stream.out, ids + "\n");
  EXPECT_THAT(stream.err, HasSubstr("3 prompt tokens, 5 new"));

  const Outcome text = Run(generate + " --prompt hello");
  EXPECT_EQ(text.code, 1);
  EXPECT_THAT(text.err, HasSubstr("tokenizer"));
  const Outcome range = Run(generate + " --ids 1 --top-p 7 --min-p 7");
  EXPECT_EQ(range.code, 1);
  EXPECT_THAT(range.err, HasSubstr("top_p"));
  EXPECT_THAT(range.err, HasSubstr("min_p"));
}

TEST_F(CliTest, CtrlCEndsAGeneration) {
  ConvertGolden("tiny");
  int out[2];
  ASSERT_EQ(::pipe(out), 0);
  const std::string model = dir_ / "model";
  const std::string err = dir_ / "err";
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(out[1], STDOUT_FILENO);
    if (std::freopen(err.c_str(), "w", stderr) == nullptr) ::_exit(99);
    // More tokens than could ever be made: only the signal ends it.
    ::execl(OSDN_TOOLS_BINARY, OSDN_TOOLS_BINARY, "generate", "--model", model.c_str(), "--ids",
            "1", "--ignore-eos", "--max-tokens", "2000000000", nullptr);
    ::_exit(98);
  }
  ::close(out[1]);
  char buffer[256];
  ASSERT_GT(::read(out[0], buffer, sizeof(buffer)), 0);  // it has begun
  ASSERT_EQ(::kill(child, SIGINT), 0);
  while (::read(out[0], buffer, sizeof(buffer)) > 0) {
  }
  ::close(out[0]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 1) << ReadText(err);
  EXPECT_THAT(ReadText(err), HasSubstr("osdn-tools: "));
}

}  // namespace
}  // namespace osdn::tools
