// osdn-tools generate
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/backend_flags.h"
#include "tools/command.h"
#include "tools/file_util.h"
#include "tools/generation_flags.h"
#include "tools/inference_client.h"
#include "tools/interrupt.h"
#include "tools/local_server.h"
#include "tools/score.h"
#include "tools/server_flags.h"

namespace osdn::tools {
namespace {

struct GenerateFlags {
  ServerFlags server;
  EngineOptions engine;
  std::optional<std::string> prompt;
  std::string prompt_file;
  std::vector<std::string> ids;
  GenerationFlags generation;
  OutputFlags output;
  bool json = false;
};

// The prompt as the flags give it; without any of them, standard input.
absl::Status SetPrompt(const GenerateFlags& flags, int64_t vocab_size,
                       v1::GenerateRequest* request) {
  if (!flags.ids.empty()) {
    std::string text = absl::StrJoin(flags.ids, " ");
    std::replace(text.begin(), text.end(), ',', ' ');
    absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds(text, vocab_size);
    if (!ids.ok())
      return absl::InvalidArgumentError(absl::StrCat("--ids: ", ids.status().message()));
    for (const int32_t id : *ids) {
      request->mutable_prompt()->mutable_tokens()->add_ids(static_cast<uint32_t>(id));
    }
    return absl::OkStatus();
  }
  std::string text;
  if (flags.prompt.has_value()) {
    text = *flags.prompt;
  } else {
    absl::StatusOr<std::string> file =
        ReadSmallFile(flags.prompt_file.empty() ? "-" : flags.prompt_file);
    if (!file.ok()) return file.status();
    text = *std::move(file);
  }
  request->mutable_prompt()->set_text(std::move(text));
  return absl::OkStatus();
}

using Object = nlohmann::ordered_json;

// Bytes of a token, which may be no whole characters, as they are.
std::vector<int> ByteValues(const std::string& bytes) {
  const auto value = [](char byte) { return static_cast<int>(static_cast<unsigned char>(byte)); };
  std::vector<int> values(bytes.size());
  std::transform(bytes.begin(), bytes.end(), values.begin(), value);
  return values;
}

template <class Logprob>
Object JsonLogprob(const Logprob& logprob) {
  return {{"token_id", logprob.token_id()},
          {"bytes", ByteValues(logprob.token_bytes())},
          {"logprob", logprob.logprob()}};
}

Object JsonTokenLogprob(const v1::TokenLogprob& logprob) {
  Object object = JsonLogprob(logprob);
  for (const v1::TopLogprob& top : logprob.top()) object["top"].push_back(JsonLogprob(top));
  return object;
}

// Takes the deltas of one generation. A single completion goes to standard output as it comes; what
// is one of many, or for --json, when it is whole.
class Output {
 public:
  Output(bool json, bool has_tokenizer, bool many)
      : json_(json), has_tokenizer_(has_tokenizer), many_(many) {}

  void Add(const v1::Delta& delta) {
    Choice& choice = choices_[delta.index()];
    choice.text += delta.text();
    choice.ids.insert(choice.ids.end(), delta.token_ids().begin(), delta.token_ids().end());
    for (const v1::TokenLogprob& logprob : delta.logprobs()) {
      choice.logprobs.push_back(JsonTokenLogprob(logprob));
    }
    if (!json_ && !many_) Show(delta.text(), delta.token_ids());
  }

  void Finish(const v1::Finished& finished) {
    const Choice& choice = choices_[finished.index()];
    if (json_) {
      std::cout << Json(choice, finished) << '\n';
      return;
    }
    if (many_) {
      std::cout << "--- choice " << finished.index() << " ---\n";
      Show(choice.text, choice.ids);
    }
    std::cout << std::endl;
    first_ = true;
  }

 private:
  struct Choice {
    std::string text;
    std::vector<uint32_t> ids;
    Object logprobs = Object::array();
  };

  template <class Ids>
  void Show(const std::string& text, const Ids& ids) {
    if (has_tokenizer_) {
      std::cout << text;
    } else {
      for (const uint32_t id : ids) {
        std::cout << (first_ ? "" : " ") << id;
        first_ = false;
      }
    }
    std::cout.flush();
  }

  static std::string Json(const Choice& choice, const v1::Finished& finished) {
    const v1::Timings& timings = finished.timings();
    Object root = {
        {"model", finished.model()},
        {"index", finished.index()},
        {"text", choice.text},
        {"token_ids", choice.ids},
        {"finish_reason", FinishReasonName(finished.finish_reason())},
        {"stop_string", finished.stop_string()},
        {"usage",
         {{"prompt_tokens", finished.usage().prompt_tokens()},
          {"cached_tokens", finished.usage().cached_tokens()},
          {"completion_tokens", finished.usage().completion_tokens()}}},
        {"timings",
         {{"queue_ms", timings.queue_ms()},
          {"prefill_ms", timings.prefill_ms()},
          {"decode_ms", timings.decode_ms()},
          {"time_to_first_token_ms", timings.time_to_first_token_ms()}}},
        {"tokens_per_second", DecodeTokensPerSecond(finished)},
        {"seed", finished.params().sampling().seed()},
    };
    if (finished.params().output().logprobs()) root["logprobs"] = choice.logprobs;
    return root.dump(2, ' ', false, Object::error_handler_t::replace);
  }

  const bool json_;
  const bool has_tokenizer_;
  const bool many_;
  bool first_ = true;  // id of a line
  std::map<uint32_t, Choice> choices_;
};

absl::Status RunGenerate(const GenerateFlags& flags) {
  const SignalBlock block({SIGINT});
  grpc::ClientContext context;
  const InterruptWatcher watcher(block, [&context] { context.TryCancel(); });

  std::unique_ptr<LocalServer> local;
  std::optional<InferenceClient> client;
  if (flags.server.address.empty()) {
    absl::StatusOr<std::unique_ptr<LocalServer>> started = LocalServer::Start(flags.engine);
    if (!started.ok()) return started.status();
    local = *std::move(started);
    client.emplace(local->channel(), flags.engine.model_dir);
  } else {
    absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = OpenChannel(flags.server);
    if (!channel.ok()) return channel.status();
    client.emplace(*std::move(channel), flags.server.address);
  }

  absl::StatusOr<v1::GetModelResponse> model = client->GetModel();
  if (!model.ok()) return model.status();
  v1::GenerateRequest request;
  absl::Status status = SetPrompt(flags, model->architecture().vocab_size(), &request);
  if (!status.ok()) return status;
  ApplyGenerationFlags(flags.generation, &request);
  ApplyOutputFlags(flags.output, &request);

  Output output(flags.json, model->has_tokenizer(), flags.output.choices.value_or(1) > 1);
  const absl::StatusOr<v1::Finished> finished = client->Generate(
      request, &context, [&output](const v1::Delta& delta) { output.Add(delta); },
      [&output](const v1::Finished& choice) {
        output.Finish(choice);
        std::cerr << '[' << StatsLine(choice) << "]\n";
      });
  if (absl::IsCancelled(finished.status())) std::cout << std::endl;
  return finished.status();
}

}  // namespace

void AddGenerateCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "generate", "Continue a prompt, on a running server or, with --model, in this process");
  auto flags = std::make_shared<GenerateFlags>();
  CLI::Option_group* where = command->add_option_group("Where");
  AddServerFlags(command, &flags->server, where);
  where->add_option("--model", flags->engine.model_dir, "Model directory, run in this process");
  where->require_option(1);
  CLI::Option_group* prompt = command->add_option_group("Prompt", "Default: standard input");
  prompt->add_option("--prompt", flags->prompt, "Text");
  prompt->add_option("--prompt-file", flags->prompt_file,
                     "File with the text; - is standard input");
  prompt->add_option("--ids", flags->ids, "Token ids, separated by spaces or commas");
  prompt->require_option(0, 1);
  AddGenerationFlags(command, &flags->generation);
  AddOutputFlags(command, &flags->output);
  AddBackendFlags(command, &flags->engine.backend);
  command->add_flag("--json", flags->json,
                    "One JSON object a completion instead of a stream of text");
  command->callback([flags, action] { *action = [flags] { return RunGenerate(*flags); }; });
}

}  // namespace osdn::tools
