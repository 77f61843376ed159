// What the server says about its model.
#ifndef OSDN_SERVER_MODEL_INFO_H_
#define OSDN_SERVER_MODEL_INFO_H_

#include <cstdint>

#include "engine/engine.h"
#include "osdn/v1/inference.pb.h"
#include "server/options.h"

namespace osdn {

// Numbers in the weights, by the architecture's list of tensors.
int64_t ParameterCount(const ArchitectureConfig& arch);

// "osdn", or "delta_net" for eta 0 without APF.
absl::string_view ArchitectureType(const ArchitectureConfig& arch);

void FillModelResponse(const Engine& engine, const ServerOptions& options,
                       v1::GetModelResponse* response);

}  // namespace osdn

#endif  // OSDN_SERVER_MODEL_INFO_H_
