// Every op of the table as an Op of the harness, over odd sizes. Tolerances follow from the unit
// roundoff of the arithmetic that the contracts in kernels/include allow.
#ifndef OSDN_TESTS_UNIT_KERNELS_OPS_UNDER_TEST_H_
#define OSDN_TESTS_UNIT_KERNELS_OPS_UNDER_TEST_H_

#include <memory>
#include <vector>

#include "tests/unit/kernels/op_harness.h"

namespace osdn::kernels {

using OpList = std::vector<std::unique_ptr<Op>>;

// Groups of one and several products, accumulating or not, with weights of `dtype`.
OpList LinearOps(DType dtype, Random* random);
OpList RmsNormOps(Random* random);
OpList OutputNormOps(Random* random);
OpList SwiGluOps();
OpList ShortConvOps(Random* random);
OpList QkPrepareOps();
OpList GateOps(Random* random);
// Heads of 8 to 256 with key and value sizes equal and not, with and without APF, clip-hitting,
// negative eigenvalues, and plain DeltaNet.
OpList MixerOps();

}  // namespace osdn::kernels

#endif  // OSDN_TESTS_UNIT_KERNELS_OPS_UNDER_TEST_H_
