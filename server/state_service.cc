#include "server/state_service.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/snapshot.h"
#include "server/generate_calls.h"
#include "server/state_access.h"
#include "server/status.h"

namespace osdn {
namespace {

constexpr char kOwner[] = "";  // as in state_access.cc
constexpr size_t kExportPiece = size_t{1} << 20;
constexpr uint32_t kDefaultPage = 100;
constexpr uint32_t kMaxPage = 1000;

absl::Status LoadingError() {
  return absl::UnavailableError("the model is loading: try again shortly, or watch health");
}

class ExportCall final : public grpc::ServerWriteReactor<v1::ExportStateResponse> {
 public:
  ExportCall(const std::optional<CallEnvironment>& environment, std::string id) {
    if (!environment.has_value()) {
      Finish(ToGrpcStatus(LoadingError()));
      return;
    }
    environment->storage->Post([this, states = environment->states, id = std::move(id)] {
      const absl::StatusOr<StateRecord> record = states->store().Find(kOwner, id);
      if (!record.ok()) return Finish(ToGrpcStatus(record.status()));
      if (absl::Status s = states->transit().Add(record->bytes, &hold_); !s.ok()) {
        return Finish(ToGrpcStatus(s));
      }
      absl::StatusOr<std::string> blob = states->store().Read(kOwner, id);
      if (!blob.ok()) return Finish(ToGrpcStatus(blob.status()));
      // A file that lost bits says so here, not where it is imported.
      if (auto info = InspectSnapshot(*blob); !info.ok()) {
        return Finish(ToGrpcStatus(info.status()));
      }
      blob_ = *std::move(blob);
      WriteNext();
    });
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
    WriteNext();
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (sent_ == blob_.size()) return Finish(grpc::Status::OK);
    piece_.set_data(blob_.substr(sent_, kExportPiece));
    sent_ += piece_.data().size();
    StartWrite(&piece_);
  }

  ByteBudget::Hold hold_;
  std::string blob_;
  size_t sent_ = 0;
  v1::ExportStateResponse piece_;
};

class ImportCall final : public grpc::ServerReadReactor<v1::ImportStateRequest> {
 public:
  ImportCall(const std::optional<CallEnvironment>& environment, v1::ImportStateResponse* response)
      : environment_(environment), response_(response) {
    if (environment_.has_value()) {
      StartRead(&piece_);
    } else {
      Finish(ToGrpcStatus(LoadingError()));
    }
  }
  void OnReadDone(bool ok) override {
    if (!ok) return Keep();
    if (first_) {
      label_ = piece_.label();
      ttl_ = ToTtl(piece_.ttl_seconds());
      first_ = false;
    }
    const size_t most = environment_->states->max_blob_bytes();
    if (piece_.data().size() > most - std::min(most, blob_.size())) {
      return Finish(ToGrpcStatus(absl::InvalidArgumentError(absl::StrCat(
          "data: more than ", most, " bytes, the most that a state of this model can have"))));
    }
    const auto bytes = static_cast<int64_t>(piece_.data().size());
    if (absl::Status s = environment_->states->transit().Add(bytes, &hold_); !s.ok()) {
      return Finish(ToGrpcStatus(s));
    }
    blob_ += piece_.data();
    StartRead(&piece_);
  }
  void OnDone() override { delete this; }

 private:
  // The client has sent all, or is gone: then nobody hears the answer, and a part is no state.
  void Keep() {
    environment_->storage->Post([this] {
      if (absl::Status s = CheckLabel("label", label_); !s.ok()) return Finish(ToGrpcStatus(s));
      absl::StatusOr<v1::StateInfo> info = environment_->states->Import(blob_, label_, ttl_);
      blob_.clear();
      hold_ = {};  // by the time that the client knows
      if (!info.ok()) return Finish(ToGrpcStatus(info.status()));
      *response_->mutable_state() = *std::move(info);
      Finish(grpc::Status::OK);
    });
  }

  const std::optional<CallEnvironment> environment_;
  v1::ImportStateResponse* const response_;
  v1::ImportStateRequest piece_;
  bool first_ = true;
  std::string label_;
  absl::Duration ttl_;
  ByteBudget::Hold hold_;
  std::string blob_;
};

}  // namespace

grpc::ServerUnaryReactor* StateService::Run(grpc::CallbackServerContext* context,
                                            std::function<absl::Status(StateAccess*)> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const std::optional<CallEnvironment> environment = environment_(context);
  if (!environment.has_value()) {
    reactor->Finish(ToGrpcStatus(LoadingError()));
    return reactor;
  }
  environment->storage->Post([reactor, states = environment->states, work = std::move(work)] {
    reactor->Finish(ToGrpcStatus(work(states)));
  });
  return reactor;
}

grpc::ServerUnaryReactor* StateService::SaveState(grpc::CallbackServerContext* context,
                                                  const v1::SaveStateRequest* request,
                                                  v1::SaveStateResponse* response) {
  const std::optional<CallEnvironment> environment = environment_(context);
  if (environment.has_value()) return StartSaveStateCall(*environment, request, response);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(LoadingError()));
  return reactor;
}

grpc::ServerUnaryReactor* StateService::ForkState(grpc::CallbackServerContext* context,
                                                  const v1::ForkStateRequest* request,
                                                  v1::ForkStateResponse* response) {
  return Run(context, [request, response](StateAccess* states) {
    if (absl::Status s = CheckLabel("label", request->label()); !s.ok()) return s;
    absl::StatusOr<v1::StateInfo> info =
        states->Fork(request->state_id(), request->label(), ToTtl(request->ttl_seconds()));
    if (!info.ok()) return info.status();
    *response->mutable_state() = *std::move(info);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* StateService::ListStates(grpc::CallbackServerContext* context,
                                                   const v1::ListStatesRequest* request,
                                                   v1::ListStatesResponse* response) {
  return Run(context, [request, response](StateAccess* states) {
    if (request->page_size() > kMaxPage) {
      const FieldViolation violation{
          "page_size", absl::StrCat(request->page_size(), " is outside [0, ", kMaxPage, "]")};
      return InvalidRequestError({violation});
    }
    const size_t size = request->page_size() == 0 ? kDefaultPage : request->page_size();
    std::vector<StateRecord> records =
        states->store().List(kOwner, request->page_token(), size + 1);
    const bool more = records.size() > size;
    if (more) records.pop_back();
    for (const StateRecord& record : records) *response->add_states() = ToStateInfo(record);
    if (more) response->set_next_page_token(records.back().id);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* StateService::GetState(grpc::CallbackServerContext* context,
                                                 const v1::GetStateRequest* request,
                                                 v1::GetStateResponse* response) {
  return Run(context, [request, response](StateAccess* states) {
    const absl::StatusOr<StateRecord> record = states->store().Find(kOwner, request->state_id());
    if (record.ok()) *response->mutable_state() = ToStateInfo(*record);
    return record.status();
  });
}

grpc::ServerUnaryReactor* StateService::DeleteState(grpc::CallbackServerContext* context,
                                                    const v1::DeleteStateRequest* request,
                                                    v1::DeleteStateResponse*) {
  return Run(context, [request](StateAccess* states) {
    return states->store().Delete(kOwner, request->state_id());
  });
}

grpc::ServerWriteReactor<v1::ExportStateResponse>* StateService::ExportState(
    grpc::CallbackServerContext* context, const v1::ExportStateRequest* request) {
  return new ExportCall(environment_(context), request->state_id());
}

grpc::ServerReadReactor<v1::ImportStateRequest>* StateService::ImportState(
    grpc::CallbackServerContext* context, v1::ImportStateResponse* response) {
  return new ImportCall(environment_(context), response);
}

}  // namespace osdn
