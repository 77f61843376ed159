// The blocks of the network (kernels/include/layer.h) as a composition of a backend's ops: what
// every backend gets that does not fuse them itself.
#ifndef OSDN_KERNELS_COMPOSED_LAYERS_H_
#define OSDN_KERNELS_COMPOSED_LAYERS_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels {

// `backend` outlives the result. RESOURCE_EXHAUSTED when the scratch does not fit.
absl::StatusOr<std::unique_ptr<LayerRunner>> CreateComposedLayers(Backend* backend,
                                                                  const LayerSpec& spec,
                                                                  int64_t max_rows);

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_COMPOSED_LAYERS_H_
