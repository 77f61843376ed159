#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/version.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<CommandLine> Parse(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"osdn-server"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// The error that `arguments` (with a model) and `yaml` give.
std::string YamlError(const std::string& yaml) {
  ResolvedOptions options;
  const absl::Status status = ApplyYaml(yaml, "server.yaml", &options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
  return Message(status);
}

OptionSource SourceOf(const ResolvedOptions& options, absl::string_view path) {
  for (size_t i = 0; i < OptionTable().size(); ++i) {
    if (OptionTable()[i].path == path) return options.sources[i];
  }
  ADD_FAILURE() << "no option " << path;
  return OptionSource::kDefault;
}

TEST(OptionTableTest, NamesAreUniqueAndDefaultsAreValid) {
  std::set<std::string> flags;
  std::set<std::string> paths;
  for (const OptionSpec& spec : OptionTable()) {
    EXPECT_TRUE(flags.insert(std::string(spec.flag)).second) << spec.flag;
    EXPECT_TRUE(paths.insert(std::string(spec.path)).second) << spec.path;
    if (spec.path == "model") continue;  // required: no default
    ServerOptions options;
    const std::string text = OptionText(spec, options);
    EXPECT_TRUE(SetOption(spec, text, &options).ok()) << spec.path << " = " << text;
    EXPECT_EQ(OptionText(spec, options), text) << spec.path;
  }
}

TEST(OptionsTest, FlagWinsOverFileAndFileOverDefault) {
  testing_support::TempDir dir;
  testing_support::WriteFile(dir.File("server.yaml"),
                             "model: from-file\n"
                             "scheduler:\n  max_slots: 3\n  max_queued_requests: 4\n"
                             "drain: {timeout: 1500ms}\n");
  const absl::StatusOr<CommandLine> command =
      Parse({"--config", dir.File("server.yaml"), "--max-slots", "5"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->action, CommandLine::Action::kServe);
  const ServerOptions& values = command->options.values;
  EXPECT_EQ(values.model_dir, "from-file");
  EXPECT_EQ(values.max_slots, 5);
  EXPECT_EQ(values.max_queued_requests, 4);
  EXPECT_EQ(values.drain_timeout, absl::Milliseconds(1500));
  EXPECT_EQ(values.max_tokens_default, ServerOptions{}.max_tokens_default);
  EXPECT_EQ(SourceOf(command->options, "scheduler.max_slots"), OptionSource::kFlag);
  EXPECT_EQ(SourceOf(command->options, "scheduler.max_queued_requests"), OptionSource::kFile);
  EXPECT_EQ(SourceOf(command->options, "generation.max_tokens_default"), OptionSource::kDefault);
}

TEST(OptionsTest, EveryOptionCanBeGivenBothWays) {
  for (const OptionSpec& spec : OptionTable()) {
    const std::string text = spec.path == "model" ? "some-dir" : OptionText(spec, ServerOptions{});
    std::vector<std::string> arguments = {std::string(spec.flag), text};
    if (spec.path != "model") arguments.insert(arguments.end(), {"--model", "m"});
    const absl::StatusOr<CommandLine> flag = Parse(arguments);
    ASSERT_TRUE(flag.ok()) << spec.flag << ": " << flag.status();
    EXPECT_EQ(SourceOf(flag->options, spec.path), OptionSource::kFlag);

    const size_t dot = spec.path.find('.');
    const std::string yaml = dot == spec.path.npos
                                 ? absl::StrCat(spec.path, ": ", text)
                                 : absl::StrCat(spec.path.substr(0, dot), ":\n  ",
                                                spec.path.substr(dot + 1), ": ", text);
    ResolvedOptions options;
    const absl::Status status = ApplyYaml(yaml, "f", &options);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(SourceOf(options, spec.path), OptionSource::kFile);
    EXPECT_EQ(OptionText(spec, options.values), text);
  }
}

TEST(OptionsTest, BoolFlagsStandAlone) {
  const absl::StatusOr<CommandLine> command =
      Parse({"--model", "m", "--insecure", "--verify-checksums=false"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_TRUE(command->options.values.insecure);
  EXPECT_FALSE(command->options.values.verify_checksums);
}

TEST(OptionsTest, ErrorsNameFlagValueAndRange) {
  EXPECT_THAT(Message(Parse({"--model", "m", "--max-slots", "0"}).status()),
              AllOf(HasSubstr("--max-slots"), HasSubstr("0 is outside [1, 65536]")));
  EXPECT_THAT(Message(Parse({"--model", "m", "--max-slots", "many"}).status()),
              AllOf(HasSubstr("--max-slots"), HasSubstr("\"many\" is not a whole number")));
  EXPECT_THAT(Message(Parse({"--model", "m", "--max-slots", "99999999999999999999"}).status()),
              HasSubstr("--max-slots"));
  EXPECT_THAT(Message(Parse({"--model", "m", "--backend", "tpu"}).status()),
              AllOf(HasSubstr("--backend"), HasSubstr("tpu"), HasSubstr("auto, cpu, cuda")));
  EXPECT_THAT(Message(Parse({"--model", "m", "--drain-timeout", "30"}).status()),
              AllOf(HasSubstr("--drain-timeout"), HasSubstr("unit")));
  EXPECT_THAT(Message(Parse({"--model", "m", "--drain-timeout", "-1s"}).status()),
              HasSubstr("outside [0, 24h]"));
  EXPECT_THAT(Message(Parse({"--model", "m", "--verify-checksums=maybe"}).status()),
              AllOf(HasSubstr("--verify-checksums"), HasSubstr("true or false")));
  EXPECT_THAT(Message(Parse({"--model", "m", "--no-such-flag", "1"}).status()),
              HasSubstr("--no-such-flag"));
  EXPECT_THAT(Message(Parse({"--model", "m", "--grpc-address", "nowhere"}).status()),
              AllOf(HasSubstr("--grpc-address"), HasSubstr("nowhere")));
}

TEST(OptionsTest, ModelIsRequired) {
  EXPECT_THAT(Message(Parse({}).status()), HasSubstr("--model is required"));
}

TEST(OptionsTest, PlaintextThatOthersReachMustBeAskedFor) {
  const auto refused = Parse({"--model", "m", "--grpc-address", "0.0.0.0:50051"});
  EXPECT_THAT(Message(refused.status()), AllOf(HasSubstr("0.0.0.0"), HasSubstr("--insecure")));
  EXPECT_TRUE(Parse({"--model", "m", "--grpc-address", "0.0.0.0:50051", "--insecure"}).ok());
}

TEST(OptionsTest, DefaultMayNotExceedTheLimit) {
  EXPECT_THAT(Message(Parse({"--model", "m", "--max-tokens-limit", "10"}).status()),
              AllOf(HasSubstr("--max-tokens-default"), HasSubstr("--max-tokens-limit 10")));
}

TEST(OptionsTest, AMissingFileIsNamed) {
  const auto command = Parse({"--model", "m", "--config", "/nowhere/server.yaml"});
  EXPECT_EQ(command.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(command.status()), HasSubstr("/nowhere/server.yaml"));
  EXPECT_FALSE(Parse({"--model", "m", "--config", "/"}).ok()) << "a folder is no file";
}

TEST(OptionsTest, HelpNamesEveryOption) {
  const absl::StatusOr<CommandLine> command = Parse({"--help"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->action, CommandLine::Action::kShowText);
  for (const OptionSpec& spec : OptionTable()) {
    EXPECT_THAT(command->text, HasSubstr(std::string(spec.flag)));
    EXPECT_THAT(command->text, HasSubstr(std::string(spec.path)));
  }
  EXPECT_THAT(command->text, HasSubstr("Exit codes"));
}

TEST(OptionsTest, VersionIsPrinted) {
  const absl::StatusOr<CommandLine> command = Parse({"--version"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->text, absl::StrCat("osdn-server ", Version(), "\n"));
}

TEST(OptionsTest, CheckConfigIsAnAction) {
  const absl::StatusOr<CommandLine> command = Parse({"--model", "m", "--check-config"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->action, CommandLine::Action::kCheckConfig);
  EXPECT_FALSE(Parse({"--check-config"}).ok()) << "checked like any other start";
}

TEST(YamlTest, TheExampleShowsEveryOptionWithItsDefault) {
  ResolvedOptions options;
  const absl::Status status =
      ApplyYaml(testing_support::ReadFile(testing_support::TestData("../../deploy/server.yaml")),
                "f", &options);
  ASSERT_TRUE(status.ok()) << status;
  const ServerOptions defaults;
  for (size_t i = 0; i < OptionTable().size(); ++i) {
    const OptionSpec& spec = OptionTable()[i];
    EXPECT_EQ(options.sources[i], OptionSource::kFile) << spec.path;
    if (spec.path == "model") continue;
    EXPECT_EQ(OptionText(spec, options.values), OptionText(spec, defaults)) << spec.path;
  }
}

TEST(YamlTest, EmptyFilesAndEmptySectionsAreFine) {
  for (const char* yaml : {"", "# nothing\n", "scheduler:\n", "{}"}) {
    ResolvedOptions options;
    EXPECT_TRUE(ApplyYaml(yaml, "f", &options).ok()) << yaml;
  }
}

TEST(YamlTest, UnknownKeysAreErrorsWithFileAndLine) {
  EXPECT_THAT(YamlError("model: m\n\nscheduler:\n  max_slot: 3\n"),
              AllOf(HasSubstr("server.yaml:4:"), HasSubstr("scheduler.max_slot"),
                    HasSubstr("max_slots"), Not(HasSubstr("keepalive_time"))));
  EXPECT_THAT(YamlError("models: m\n"), AllOf(HasSubstr("server.yaml:1:"), HasSubstr("models")));
}

TEST(YamlTest, EveryProblemIsToldAtOnce) {
  EXPECT_THAT(YamlError("nonsense: 1\nscheduler:\n  max_slots: 0\ndrain:\n  timeout: soon\n"),
              AllOf(HasSubstr("server.yaml:1: unknown option nonsense"),
                    HasSubstr("server.yaml:3: scheduler.max_slots: 0 is outside [1, 65536]"),
                    HasSubstr("server.yaml:5: drain.timeout: \"soon\"")));
}

TEST(YamlTest, WrongShapesAreErrors) {
  EXPECT_THAT(YamlError("scheduler: 3\n"), HasSubstr("section"));
  EXPECT_THAT(YamlError("model: [a, b]\n"), HasSubstr("wants one value"));
  EXPECT_THAT(YamlError("model:\n"), HasSubstr("wants one value"));
  EXPECT_THAT(YamlError("- model\n"), HasSubstr("map"));
  EXPECT_THAT(YamlError("? [a]\n: b\n"), HasSubstr("key"));
  EXPECT_THAT(YamlError("model: a\nmodel: b\n"),
              AllOf(HasSubstr("server.yaml:2:"), HasSubstr("twice")));
  EXPECT_THAT(YamlError("model: [a\n"), HasSubstr("server.yaml:"));
}

TEST(YamlTest, AWrongValueIsAnErrorEvenUnderAFlag) {
  testing_support::TempDir dir;
  testing_support::WriteFile(dir.File("server.yaml"), "scheduler: {max_slots: -1}\n");
  EXPECT_FALSE(
      Parse({"--model", "m", "--config", dir.File("server.yaml"), "--max-slots", "5"}).ok());
}

TEST(OptionsTest, DescriptionTellsValueAndSource) {
  const absl::StatusOr<CommandLine> command = Parse({"--model", "m", "--threads", "3"});
  ASSERT_TRUE(command.ok()) << command.status();
  const std::vector<std::string> lines = DescribeOptions(command->options);
  EXPECT_THAT(lines, ::testing::Contains("threads = 3 (flag)"));
  EXPECT_THAT(lines, ::testing::Contains("drain.timeout = 30s (default)"));
}

}  // namespace
}  // namespace osdn
