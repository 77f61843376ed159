#include "server/model_info.h"

#include <string>

#include "engine/tensor_specs.h"
#include "server/version.h"

namespace osdn {
namespace {

void FillArchitecture(const ModelConfig& config, v1::ModelArchitecture* out) {
  const ArchitectureConfig& arch = config.arch;
  out->set_type(std::string(ArchitectureType(arch)));
  out->set_layers(static_cast<uint32_t>(arch.num_layers));
  out->set_hidden_size(static_cast<uint32_t>(arch.hidden_size));
  out->set_heads(static_cast<uint32_t>(arch.num_heads));
  out->set_key_dim(static_cast<uint32_t>(arch.key_dim));
  out->set_value_dim(static_cast<uint32_t>(arch.value_dim));
  out->set_vocab_size(static_cast<uint32_t>(arch.vocab_size));
  out->set_parameters(static_cast<uint64_t>(ParameterCount(arch)));
  out->set_dtype(std::string(kernels::DTypeName(config.dtype)));
  out->set_eta(arch.eta);
  out->set_apf(arch.apf == Apf::kScalar ? "scalar" : "none");
}

}  // namespace

int64_t ParameterCount(const ArchitectureConfig& arch) {
  int64_t total = 0;
  for (const TensorSpec& spec : TensorSpecs(arch)) {
    int64_t elements = 1;
    for (int64_t dim : spec.shape) elements *= dim;
    total += elements;
  }
  return total;
}

absl::string_view ArchitectureType(const ArchitectureConfig& arch) {
  return arch.is_plain_delta_net() ? "delta_net" : "osdn";
}

void FillModelResponse(const Engine& engine, const ServerOptions& options,
                       v1::GetModelResponse* response) {
  const ModelConfig& config = engine.config();
  response->set_name(config.name);
  response->set_model_id(config.model_id());
  FillArchitecture(config, response->mutable_architecture());
  response->set_has_tokenizer(engine.tokenizer() != nullptr);
  response->set_has_chat_template(config.chat.has_value());
  if (config.chat.has_value()) {
    for (const auto& [role, unused] : config.chat->roles) response->add_chat_roles(role);
  }
  if (config.bos_id.has_value()) response->set_bos_id(static_cast<uint32_t>(*config.bos_id));
  response->mutable_eos_ids()->Assign(config.eos_ids.begin(), config.eos_ids.end());
  response->set_state_bytes_per_sequence(engine.info().state_bytes_per_slot);
  response->set_max_running(static_cast<uint32_t>(engine.info().slots));
  response->set_max_queued_requests(static_cast<uint64_t>(options.max_queued_requests));
  response->set_max_tokens_limit(static_cast<uint32_t>(options.max_tokens_limit));
  response->set_max_tokens_default(
      static_cast<uint32_t>(std::min(options.max_tokens_default, options.max_tokens_limit)));
  response->set_max_prompt_tokens(static_cast<uint64_t>(options.max_queued_tokens));
  response->set_backend(engine.info().backend);
  response->set_server_version(std::string(Version()));
  response->set_max_choices(static_cast<uint32_t>(kMaxChoices));
  response->set_max_continuations(static_cast<uint32_t>(kMaxContinuations));
}

}  // namespace osdn
