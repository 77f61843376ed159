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

constexpr char kWhat[] = "StateService";
constexpr size_t kExportPiece = size_t{1} << 20;
constexpr uint32_t kDefaultPage = 100;
constexpr uint32_t kMaxPage = 1000;

class ExportCall final : public grpc::ServerWriteReactor<v1::ExportStateResponse> {
 public:
  ExportCall(const absl::StatusOr<CallEnvironment>& environment, std::string id) {
    if (!environment.ok()) {
      Finish(ToGrpcStatus(environment.status()));
      return;
    }
    environment->storage->Post([this, environment = *environment, id = std::move(id)] {
      StateAccess* states = environment.states;
      const std::string owner = environment.owner();
      const absl::StatusOr<StateRecord> record = states->store().Find(owner, id);
      if (!record.ok()) return Finish(ToGrpcStatus(record.status()));
      if (absl::Status s = states->transit().Add(record->bytes, &hold_); !s.ok()) {
        return Finish(ToGrpcStatus(s));
      }
      absl::StatusOr<std::string> blob = states->store().Read(owner, id);
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
  ImportCall(absl::StatusOr<CallEnvironment> environment, v1::ImportStateResponse* response)
      : environment_(std::move(environment)), response_(response) {
    if (environment_.ok()) {
      StartRead(&piece_);
    } else {
      Finish(ToGrpcStatus(environment_.status()));
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
      absl::StatusOr<v1::StateInfo> info =
          environment_->states->Import(environment_->owner(), blob_, label_, ttl_);
      blob_.clear();
      hold_ = {};  // by the time that the client knows
      if (!info.ok()) return Finish(ToGrpcStatus(info.status()));
      *response_->mutable_state() = *std::move(info);
      Finish(grpc::Status::OK);
    });
  }

  const absl::StatusOr<CallEnvironment> environment_;
  v1::ImportStateResponse* const response_;
  v1::ImportStateRequest piece_;
  bool first_ = true;
  std::string label_;
  absl::Duration ttl_;
  ByteBudget::Hold hold_;
  std::string blob_;
};

}  // namespace

grpc::ServerUnaryReactor* StateService::Run(grpc::CallbackServerContext* context, Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::StatusOr<CallEnvironment> environment = admit_(context, Scope::kState, kWhat);
  if (!environment.ok()) {
    reactor->Finish(ToGrpcStatus(environment.status()));
    return reactor;
  }
  environment->storage->Post(
      [reactor, environment = *environment, work = std::move(work)]() mutable {
        const absl::Status status = work(environment);
        environment.key = nullptr;  // a client that knows the end may come again
        reactor->Finish(ToGrpcStatus(status));
      });
  return reactor;
}

grpc::ServerUnaryReactor* StateService::SaveState(grpc::CallbackServerContext* context,
                                                  const v1::SaveStateRequest* request,
                                                  v1::SaveStateResponse* response) {
  const absl::StatusOr<CallEnvironment> environment = admit_(context, Scope::kState, kWhat);
  if (environment.ok()) return StartSaveStateCall(*environment, request, response);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(environment.status()));
  return reactor;
}

grpc::ServerUnaryReactor* StateService::ForkState(grpc::CallbackServerContext* context,
                                                  const v1::ForkStateRequest* request,
                                                  v1::ForkStateResponse* response) {
  return Run(context, [request, response](const CallEnvironment& environment) {
    if (absl::Status s = CheckLabel("label", request->label()); !s.ok()) return s;
    absl::StatusOr<v1::StateInfo> info = environment.states->Fork(
        environment.owner(), request->state_id(), request->label(), ToTtl(request->ttl_seconds()));
    if (!info.ok()) return info.status();
    *response->mutable_state() = *std::move(info);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* StateService::ListStates(grpc::CallbackServerContext* context,
                                                   const v1::ListStatesRequest* request,
                                                   v1::ListStatesResponse* response) {
  return Run(context, [request, response](const CallEnvironment& environment) {
    if (request->page_size() > kMaxPage) {
      const FieldViolation violation{
          "page_size", absl::StrCat(request->page_size(), " is outside [0, ", kMaxPage, "]")};
      return InvalidRequestError({violation});
    }
    const size_t size = request->page_size() == 0 ? kDefaultPage : request->page_size();
    absl::StatusOr<std::vector<StateRecord>> found =
        environment.states->store().List(environment.owner(), request->page_token(), size + 1);
    if (!found.ok()) return found.status();
    std::vector<StateRecord>& records = *found;
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
  return Run(context, [request, response](const CallEnvironment& environment) {
    const absl::StatusOr<StateRecord> record =
        environment.states->store().Find(environment.owner(), request->state_id());
    if (record.ok()) *response->mutable_state() = ToStateInfo(*record);
    return record.status();
  });
}

grpc::ServerUnaryReactor* StateService::DeleteState(grpc::CallbackServerContext* context,
                                                    const v1::DeleteStateRequest* request,
                                                    v1::DeleteStateResponse*) {
  return Run(context, [request](const CallEnvironment& environment) {
    return environment.states->store().Delete(environment.owner(), request->state_id());
  });
}

grpc::ServerWriteReactor<v1::ExportStateResponse>* StateService::ExportState(
    grpc::CallbackServerContext* context, const v1::ExportStateRequest* request) {
  return new ExportCall(admit_(context, Scope::kState, kWhat), request->state_id());
}

grpc::ServerReadReactor<v1::ImportStateRequest>* StateService::ImportState(
    grpc::CallbackServerContext* context, v1::ImportStateResponse* response) {
  return new ImportCall(admit_(context, Scope::kState, kWhat), response);
}

}  // namespace osdn
