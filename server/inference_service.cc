#include "server/inference_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/model_info.h"
#include "server/request_mapping.h"
#include "server/status.h"

namespace osdn {
namespace {

// Two, so that one very long prompt does not hold up every other request's start.
constexpr int kWorkerThreads = 2;
// One: passing on an event costs some microseconds, and the order of streams stays that of the
// engine.
constexpr int kWriterThreads = 1;
// Two, so that a slow disk delays states only, and one large state not all others.
constexpr int kStorageThreads = 2;

absl::Status LoadingError() {
  return absl::UnavailableError("the model is loading: try again shortly, or watch health");
}

// A stream that ends before it begins.
class FailedStream final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse> {
 public:
  explicit FailedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context,
                                    const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

absl::Status NeedTokenizer(const Engine& engine) {
  if (engine.tokenizer() != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("model ", engine.config().name,
                                                    " has no tokenizer: it takes and gives token "
                                                    "ids only"));
}

absl::Status TokenizeText(const Engine& engine, const v1::TokenizeRequest& request,
                          v1::TokenizeResponse* response) {
  if (absl::Status s = NeedTokenizer(engine); !s.ok()) return s;
  const Tokenizer& tokenizer = *engine.tokenizer();
  std::vector<int32_t> ids;
  if (request.add_bos()) {
    const std::optional<int32_t> bos = engine.config().bos_id;
    if (!bos.has_value()) {
      const FieldViolation violation{"add_bos",
                                     absl::StrCat("true, but model ", engine.config().name,
                                                  " has no beginning-of-text token")};
      return InvalidRequestError({violation});
    }
    ids.push_back(*bos);
  }
  const std::vector<int32_t> encoded = tokenizer.Encode(request.text());
  ids.insert(ids.end(), encoded.begin(), encoded.end());
  for (int32_t id : ids) {
    v1::Token* token = response->add_tokens();
    token->set_id(static_cast<uint32_t>(id));
    token->set_piece(std::string(tokenizer.Piece(id)));
    token->set_bytes(std::string(tokenizer.TokenBytes(id)));
  }
  return absl::OkStatus();
}

absl::Status DetokenizeIds(const Engine& engine, const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse* response) {
  if (absl::Status s = NeedTokenizer(engine); !s.ok()) return s;
  std::vector<FieldViolation> violations;
  const std::vector<int32_t> ids =
      ToTokenIds(request.ids(), "ids", engine.tokenizer()->vocab_size(), &violations);
  if (!violations.empty()) return InvalidRequestError(violations);
  response->set_text(engine.tokenizer()->Decode(ids));
  return absl::OkStatus();
}

}  // namespace

InferenceService::InferenceService(const ServerOptions& options,
                                   std::shared_ptr<spdlog::logger> logger)
    : options_(options),
      logger_(std::move(logger)),
      workers_(kWorkerThreads),
      writers_(kWriterThreads),
      storage_(kStorageThreads) {}

std::optional<CallEnvironment> InferenceService::Environment() {
  CallEnvironment environment;
  environment.engine = engine_.load(std::memory_order_acquire);
  if (environment.engine == nullptr) return std::nullopt;
  environment.workers = &workers_;
  environment.writers = &writers_;
  environment.storage = &storage_;
  environment.states = states_;
  environment.logger = logger_.get();
  environment.max_tokens_default = options_.max_tokens_default;
  environment.max_tokens_limit = options_.max_tokens_limit;
  return environment;
}

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const v1::GenerateRequest* request,
                                                     v1::GenerateResponse* response) {
  const std::optional<CallEnvironment> environment = Environment();
  if (!environment.has_value()) return FinishNow(context, LoadingError());
  return StartGenerateCall(*environment, request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* InferenceService::GenerateStream(
    grpc::CallbackServerContext*, const v1::GenerateRequest* request) {
  const std::optional<CallEnvironment> environment = Environment();
  if (!environment.has_value()) return new FailedStream(ToGrpcStatus(LoadingError()));
  return StartGenerateStreamCall(*environment, request);
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  const std::optional<CallEnvironment> environment = Environment();
  if (!environment.has_value()) return FinishNow(context, LoadingError());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  workers_.Post([reactor, engine = environment->engine, request, response] {
    reactor->Finish(ToGrpcStatus(TokenizeText(*engine, *request, response)));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  const std::optional<CallEnvironment> environment = Environment();
  if (!environment.has_value()) return FinishNow(context, LoadingError());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  workers_.Post([reactor, engine = environment->engine, request, response] {
    reactor->Finish(ToGrpcStatus(DetokenizeIds(*engine, *request, response)));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest*,
                                                     v1::GetModelResponse* response) {
  const std::optional<CallEnvironment> environment = Environment();
  if (!environment.has_value()) return FinishNow(context, LoadingError());
  FillModelResponse(*environment->engine, options_, response);
  return FinishNow(context, absl::OkStatus());
}

}  // namespace osdn
