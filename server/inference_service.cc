#include "server/inference_service.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/chat_mapping.h"
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

constexpr size_t kMaxMetadataBytes = 128;

// The value of a key, cut to what is reasonable; or "".
absl::string_view Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(key);
  if (it == metadata.end()) return {};
  return {it->second.data(), std::min(it->second.size(), kMaxMetadataBytes)};
}

// Whom a call's tokens count for without keys: who it says it is, else the machine it comes from.
// Anybody can say anything; it decides about order only.
std::string ClientOf(const grpc::CallbackServerContext& context) {
  if (const absl::string_view id = Metadata(context, "osdn-client-id"); !id.empty()) {
    return absl::StrCat("id:", id);
  }
  const std::string peer = context.peer();  // ipv4:HOST:PORT
  return peer.substr(0, peer.rfind(':'));
}

std::optional<std::chrono::steady_clock::time_point> DeadlineOf(
    const grpc::CallbackServerContext& context) {
  constexpr auto kFar = std::chrono::hours(24 * 365);
  const auto left = context.deadline() - std::chrono::system_clock::now();
  if (left > kFar) return std::nullopt;  // none was set
  return std::chrono::steady_clock::now() + left;
}

// Tells this call from others in logs; not secret.
std::string MakeRequestId() {
  std::random_device device;
  return absl::StrCat(absl::Hex(device(), absl::kZeroPad8), absl::Hex(device(), absl::kZeroPad8));
}

absl::string_view RejectionReason(const absl::Status& status) {
  if (absl::IsUnauthenticated(status)) return "unauthenticated";
  return absl::IsPermissionDenied(status) ? "permission" : "rate";
}

void FillCapacity(const CallEnvironment& environment, const ServerOptions& options,
                  v1::GetCapacityResponse* response) {
  const EngineStats stats = environment.engine->stats();
  response->set_slots(static_cast<uint32_t>(environment.engine->info().slots));
  response->set_slots_used(static_cast<uint32_t>(stats.slots_used));
  response->set_running(static_cast<uint32_t>(stats.running));
  response->set_swapped(static_cast<uint32_t>(stats.swapped));
  response->set_queued_requests(static_cast<uint64_t>(stats.queued));
  response->set_max_queued_requests(static_cast<uint64_t>(options.max_queued_requests));
  response->set_queued_tokens(static_cast<uint64_t>(stats.queued_tokens));
  response->set_max_queued_tokens(static_cast<uint64_t>(options.max_queued_tokens));
  const PrefixCacheStats& cache = stats.prefix_cache;
  response->set_prefix_cache_bytes(static_cast<uint64_t>(cache.bytes));
  response->set_prefix_cache_max_bytes(static_cast<uint64_t>(options.prefix_cache_bytes));
  response->set_prefix_cache_states(static_cast<uint64_t>(cache.images));
  response->set_prefix_cache_queries(static_cast<uint64_t>(cache.queries));
  response->set_prefix_cache_hits(static_cast<uint64_t>(cache.hits));
  response->set_prefix_cache_cached_tokens(static_cast<uint64_t>(cache.cached_tokens));
  response->set_prefix_cache_evictions(static_cast<uint64_t>(cache.evictions));
  const StateStore::Usage usage = environment.states->store().usage();
  response->set_saved_states(static_cast<uint64_t>(usage.states));
  response->set_max_saved_states(static_cast<uint64_t>(options.state_max_count));
  response->set_saved_state_bytes(static_cast<uint64_t>(usage.bytes));
  response->set_max_saved_state_bytes(static_cast<uint64_t>(options.state_max_bytes));
  const ByteBudget& transit = environment.states->transit();
  response->set_state_transit_bytes(static_cast<uint64_t>(transit.used()));
  response->set_max_state_transit_bytes(static_cast<uint64_t>(transit.max_bytes()));
}

}  // namespace

InferenceService::InferenceService(const ServerOptions& options, ApiKeys* keys, Metrics* metrics,
                                   std::shared_ptr<spdlog::logger> logger)
    : options_(options),
      keys_(keys),
      metrics_(metrics),
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
  environment.metrics = metrics_;
  environment.max_tokens_default = options_.max_tokens_default;
  environment.max_tokens_limit = options_.max_tokens_limit;
  return environment;
}

absl::StatusOr<CallEnvironment> InferenceService::Admit(const Caller& caller, Scope scope,
                                                        absl::string_view what) {
  std::shared_ptr<ApiKeys::Use> key;
  if (keys_ != nullptr) {
    absl::StatusOr<std::shared_ptr<ApiKeys::Use>> use = keys_->Admit(caller.token, scope, what);
    if (!use.ok()) {
      metrics_->Rejected(RejectionReason(use.status()));
      return use.status();
    }
    key = *std::move(use);
  }
  std::optional<CallEnvironment> environment = Environment();
  if (!environment.has_value()) return LoadingError();
  environment->client = key == nullptr ? std::string(caller.client) : "key:" + key->name();
  environment->deadline = caller.deadline;
  environment->key = std::move(key);
  environment->request_id =
      caller.request_id.empty() ? MakeRequestId() : std::string(caller.request_id);
  environment->traceparent = std::string(caller.traceparent);
  return *std::move(environment);
}

absl::StatusOr<CallEnvironment> InferenceService::Admit(grpc::CallbackServerContext* context,
                                                        Scope scope, absl::string_view what) {
  const std::string client = ClientOf(*context);
  absl::StatusOr<CallEnvironment> environment =
      Admit(Caller{.token = BearerToken(Metadata(*context, "authorization")),
                   .client = client,
                   .request_id = Metadata(*context, "x-request-id"),
                   .traceparent = Metadata(*context, "traceparent"),
                   .deadline = DeadlineOf(*context)},
            scope, what);
  if (environment.ok()) context->AddInitialMetadata("x-request-id", environment->request_id);
  return environment;
}

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const v1::GenerateRequest* request,
                                                     v1::GenerateResponse* response) {
  const auto environment = Admit(context, Scope::kGenerate, "Generate");
  if (!environment.ok()) return FinishNow(context, environment.status());
  return StartGenerateCall(*environment, request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto environment = Admit(context, Scope::kGenerate, "GenerateStream");
  if (!environment.ok()) return new FailedStream(ToGrpcStatus(environment.status()));
  return StartGenerateStreamCall(*environment, request);
}

grpc::ServerUnaryReactor* InferenceService::Chat(grpc::CallbackServerContext* context,
                                                 const v1::ChatRequest* request,
                                                 v1::GenerateResponse* response) {
  const auto environment = Admit(context, Scope::kGenerate, "Chat");
  if (!environment.ok()) return FinishNow(context, environment.status());
  return StartChatCall(*environment, request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* InferenceService::ChatStream(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  const auto environment = Admit(context, Scope::kGenerate, "ChatStream");
  if (!environment.ok()) return new FailedStream(ToGrpcStatus(environment.status()));
  return StartChatStreamCall(*environment, request);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context,
                                                  const v1::ScoreRequest* request,
                                                  v1::ScoreResponse* response) {
  const auto environment = Admit(context, Scope::kGenerate, "Score");
  if (!environment.ok()) return FinishNow(context, environment.status());
  return StartScoreCall(*environment, request, response);
}

grpc::ServerUnaryReactor* InferenceService::RenderChat(grpc::CallbackServerContext* context,
                                                       const v1::RenderChatRequest* request,
                                                       v1::RenderChatResponse* response) {
  const auto environment = Admit(context, Scope::kGenerate, "RenderChat");
  if (!environment.ok()) return FinishNow(context, environment.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // A state may have to be read from the disk.
  Executor& executor = request->state_id().empty() ? workers_ : storage_;
  executor.Post([reactor, environment = *environment, request, response]() mutable {
    const absl::Status status = RenderMessages(environment, *request, response);
    environment.key = nullptr;  // a client that knows the end may come again
    reactor->Finish(ToGrpcStatus(status));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  const auto environment = Admit(context, Scope::kGenerate, "Tokenize");
  if (!environment.ok()) return FinishNow(context, environment.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  workers_.Post([reactor, environment = *environment, request, response]() mutable {
    const absl::Status status = TokenizeText(*environment.engine, *request, response);
    environment.key = nullptr;  // a client that knows the end may come again
    reactor->Finish(ToGrpcStatus(status));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  const auto environment = Admit(context, Scope::kGenerate, "Detokenize");
  if (!environment.ok()) return FinishNow(context, environment.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  workers_.Post([reactor, environment = *environment, request, response]() mutable {
    const absl::Status status = DetokenizeIds(*environment.engine, *request, response);
    environment.key = nullptr;  // a client that knows the end may come again
    reactor->Finish(ToGrpcStatus(status));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest*,
                                                     v1::GetModelResponse* response) {
  auto environment = Admit(context, Scope::kGenerate, "GetModel");
  if (!environment.ok()) return FinishNow(context, environment.status());
  FillModelResponse(*environment->engine, options_, response);
  environment->key = nullptr;
  return FinishNow(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::GetCapacity(grpc::CallbackServerContext* context,
                                                        const v1::GetCapacityRequest*,
                                                        v1::GetCapacityResponse* response) {
  auto environment = Admit(context, Scope::kGenerate, "GetCapacity");
  if (!environment.ok()) return FinishNow(context, environment.status());
  FillCapacity(*environment, options_, response);
  environment->key = nullptr;
  return FinishNow(context, absl::OkStatus());
}

}  // namespace osdn
