// One harness for every op that works on the rows of a batch: run it on a backend, compare every
// span with the op's float64 truth, and compare the bits of a span alone, cut, and in company.
#ifndef OSDN_TESTS_UNIT_KERNELS_OP_HARNESS_H_
#define OSDN_TESTS_UNIT_KERNELS_OP_HARNESS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/unit/kernels/test_random.h"

namespace osdn::kernels {

// A matrix with one row a token (or a slot).
template <typename T>
struct Rows {
  int64_t width = 0;
  std::vector<T> values;
};

// What an op reads and writes. For one span: `states` has that span's slot only.
template <typename T>
struct OpData {
  std::vector<Rows<T>> inputs;   // one row a token, read only
  std::vector<Rows<T>> outputs;  // one row a token, written, or updated in place
  std::vector<Rows<T>> states;   // one row a slot, updated in place
};

// Device addresses of an OpData; `states` carry their stride.
struct OpPointers {
  std::vector<float*> inputs;
  std::vector<float*> outputs;
  std::vector<SlotArray> states;
};

class Op {
 public:
  virtual ~Op() = default;
  virtual std::string Describe() const = 0;
  // Random inputs and states, with some columns behind each slot's state that no op may touch. Pure
  // outputs hold rubbish.
  virtual OpData<float> MakeData(int64_t rows, int64_t slots, Random* random) const = 0;
  // Returns after the op has finished.
  virtual absl::Status Run(Backend* backend, const BatchView& batch,
                           const OpPointers& data) const = 0;
  // Updates outputs and states of one span in float64, and says how far float32 may be from them
  // (`tolerance` comes in with the shapes of `data`, all zero).
  virtual void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const = 0;
};

// Owns the spans that a BatchView looks at.
struct TestBatch {
  std::string name;
  std::vector<SequenceSpan> spans;
  int64_t rows = 0;
  int64_t decode_rows = 0;
  int64_t slots = 0;  // of the pool; more than there are spans

  BatchView view() const { return {rows, decode_rows, spans}; }
};

struct PrefillSpan {
  int64_t length = 0;
  int64_t position = 0;
};

// Decode rows at random positions, then the spans; every sequence in a random slot.
TestBatch MakeBatch(int64_t decode_rows, const std::vector<PrefillSpan>& prefills, Random* random);

// Decode only and prefill only of 1, 2, 3, 17, 64, 65 and 130 rows, and mixed batches with
// positions on and off the chunk borders.
std::vector<TestBatch> OddBatches(Random* random);

// Every span's outputs and state within the op's tolerance of its truth; inputs, other slots and
// the memory around the arrays untouched.
void CheckAgainstTruth(Backend* backend, const Op& op, const TestBatch& batch, Random* random);

// Every span of the batch gives the same bits alone as in company.
void CheckAlone(Backend* backend, const Op& op, const TestBatch& batch, Random* random);

// A prefill span gives the same bits whole as when it is cut at every multiple of kChunk.
void CheckCutAtChunks(Backend* backend, const Op& op, const PrefillSpan& prefill, Random* random);

// Two backends give the same bits for the same batch.
void CheckSameBits(Backend* a, Backend* b, const Op& op, const TestBatch& batch, Random* random);

}  // namespace osdn::kernels

#endif  // OSDN_TESTS_UNIT_KERNELS_OP_HARNESS_H_
