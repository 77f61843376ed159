#include "tests/unit/kernels/op_harness.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

template <typename To, typename From>
std::vector<Rows<To>> SliceRows(const std::vector<Rows<From>>& all, int64_t first, int64_t count) {
  std::vector<Rows<To>> slices;
  for (const Rows<From>& rows : all) {
    const auto begin = rows.values.begin() + first * rows.width;
    slices.push_back({rows.width, std::vector<To>(begin, begin + count * rows.width)});
  }
  return slices;
}

// The part of `data` that belongs to one span: its rows and its slot.
template <typename To, typename From>
OpData<To> SliceSpan(const OpData<From>& data, const SequenceSpan& span) {
  return {SliceRows<To>(data.inputs, span.row, span.length),
          SliceRows<To>(data.outputs, span.row, span.length),
          SliceRows<To>(data.states, span.slot, 1)};
}

OpData<double> Zeros(OpData<double> data) {
  for (auto* group : {&data.inputs, &data.outputs, &data.states}) {
    for (Rows<double>& rows : *group) std::fill(rows.values.begin(), rows.values.end(), 0.0);
  }
  return data;
}

std::vector<DeviceFloats> Upload(Backend* backend, const std::vector<Rows<float>>& group) {
  std::vector<DeviceFloats> uploaded;
  uploaded.reserve(group.size());
  for (const Rows<float>& rows : group) uploaded.emplace_back(backend, rows.values);
  return uploaded;
}

void Download(const std::vector<DeviceFloats>& uploaded, std::vector<Rows<float>>* group) {
  for (size_t i = 0; i < uploaded.size(); ++i) (*group)[i].values = uploaded[i].Read();
}

OpData<float> RunOp(Backend* backend, const Op& op, const BatchView& batch, OpData<float> data) {
  std::vector<DeviceFloats> inputs = Upload(backend, data.inputs);
  std::vector<DeviceFloats> outputs = Upload(backend, data.outputs);
  std::vector<DeviceFloats> states = Upload(backend, data.states);
  OpPointers pointers;
  for (DeviceFloats& input : inputs) pointers.inputs.push_back(input.data());
  for (DeviceFloats& output : outputs) pointers.outputs.push_back(output.data());
  for (size_t i = 0; i < states.size(); ++i) {
    pointers.states.push_back({states[i].data(), data.states[i].width});
  }
  const absl::Status status = op.Run(backend, batch, pointers);
  EXPECT_TRUE(status.ok()) << status;
  Download(inputs, &data.inputs);
  Download(outputs, &data.outputs);
  Download(states, &data.states);
  return data;
}

void ExpectSameGroup(const std::string& what, const std::vector<Rows<float>>& actual,
                     const std::vector<Rows<float>>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(SameBits(actual[i].values, expected[i].values))
        << what << " " << i << " of width " << actual[i].width;
  }
}

void ExpectSameResult(const OpData<float>& actual, const OpData<float>& expected) {
  ExpectSameGroup("output", actual.outputs, expected.outputs);
  ExpectSameGroup("state", actual.states, expected.states);
}

void ExpectCloseGroup(const std::string& what, const std::vector<Rows<float>>& actual,
                      const std::vector<Rows<double>>& expected,
                      const std::vector<Rows<double>>& tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(Close(actual[i].values, expected[i].values, tolerance[i].values))
        << what << " " << i << " of width " << actual[i].width;
  }
}

std::string Name(const SequenceSpan& span) {
  return absl::StrCat("span at row ", span.row, ", length ", span.length, ", position ",
                      span.position, ", slot ", span.slot);
}

// Each slot that no span names keeps its bits.
void ExpectOtherSlotsUntouched(const TestBatch& batch, const OpData<float>& before,
                               const OpData<float>& after) {
  for (int64_t slot = 0; slot < batch.slots; ++slot) {
    const bool used = std::any_of(batch.spans.begin(), batch.spans.end(),
                                  [&](const SequenceSpan& span) { return span.slot == slot; });
    if (used) continue;
    ExpectSameGroup(absl::StrCat("unused slot ", slot, ", state"),
                    SliceRows<float>(after.states, slot, 1),
                    SliceRows<float>(before.states, slot, 1));
  }
}

}  // namespace

TestBatch MakeBatch(int64_t decode_rows, const std::vector<PrefillSpan>& prefills, Random* random) {
  TestBatch batch;
  batch.name = absl::StrCat(decode_rows, " decode rows");
  batch.decode_rows = decode_rows;
  const int64_t sequences = decode_rows + static_cast<int64_t>(prefills.size());
  batch.slots = sequences + 1 + sequences / 2;
  std::vector<int32_t> slots(batch.slots);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), random->engine());
  const auto add = [&](int64_t length, int64_t position) {
    batch.spans.push_back({batch.rows, length, position, slots[batch.spans.size()]});
    batch.rows += length;
  };
  for (int64_t i = 0; i < decode_rows; ++i) add(1, random->Integer(0, 1'000'000));
  for (const PrefillSpan& prefill : prefills) {
    absl::StrAppend(&batch.name, " + prefill of ", prefill.length, " at ", prefill.position);
    add(prefill.length, prefill.position);
  }
  return batch;
}

std::vector<TestBatch> OddBatches(Random* random) {
  std::vector<TestBatch> batches;
  for (const int64_t rows : {1, 2, 3, 17, 64, 65, 130}) {
    batches.push_back(MakeBatch(rows, {}, random));
    batches.push_back(MakeBatch(0, {{rows, random->Integer(0, 300)}}, random));
  }
  batches.push_back(MakeBatch(1, {{1, 0}, {65, 0}}, random));
  batches.push_back(MakeBatch(5, {{64, 128}, {2, 63}, {17, 37}, {3, 0}, {130, 61}}, random));
  return batches;
}

void CheckAgainstTruth(Backend* backend, const Op& op, const TestBatch& batch, Random* random) {
  SCOPED_TRACE(op.Describe() + ", " + batch.name);
  const OpData<float> before = op.MakeData(batch.rows, batch.slots, random);
  const OpData<float> after = RunOp(backend, op, batch.view(), before);
  ExpectSameGroup("input", after.inputs, before.inputs);
  ExpectOtherSlotsUntouched(batch, before, after);
  for (const SequenceSpan& span : batch.spans) {
    SCOPED_TRACE(Name(span));
    OpData<double> expected = SliceSpan<double>(before, span);
    OpData<double> tolerance = Zeros(expected);
    op.Truth(span.length, &expected, &tolerance);
    const OpData<float> actual = SliceSpan<float>(after, span);
    ExpectCloseGroup("output", actual.outputs, expected.outputs, tolerance.outputs);
    ExpectCloseGroup("state", actual.states, expected.states, tolerance.states);
  }
}

void CheckAlone(Backend* backend, const Op& op, const TestBatch& batch, Random* random) {
  SCOPED_TRACE(op.Describe() + ", " + batch.name);
  const OpData<float> before = op.MakeData(batch.rows, batch.slots, random);
  const OpData<float> together = RunOp(backend, op, batch.view(), before);
  for (size_t i = 0; i < batch.spans.size(); ++i) {
    SCOPED_TRACE(Name(batch.spans[i]));
    const SequenceSpan alone = {0, batch.spans[i].length, batch.spans[i].position, 0};
    const bool is_decode = static_cast<int64_t>(i) < batch.decode_rows;
    const BatchView view = {alone.length, is_decode ? 1 : 0, {&alone, 1}};
    ExpectSameResult(RunOp(backend, op, view, SliceSpan<float>(before, batch.spans[i])),
                     SliceSpan<float>(together, batch.spans[i]));
  }
}

void CheckCutAtChunks(Backend* backend, const Op& op, const PrefillSpan& prefill, Random* random) {
  const TestBatch batch = MakeBatch(0, {prefill}, random);
  SCOPED_TRACE(op.Describe() + ", " + batch.name);
  const SequenceSpan whole = {0, prefill.length, prefill.position, 0};
  const OpData<float> before = op.MakeData(whole.length, /*slots=*/1, random);
  const OpData<float> expected = RunOp(backend, op, {whole.length, 0, {&whole, 1}}, before);
  std::vector<Rows<float>> states = before.states;
  for (int64_t first = 0; first < whole.length;) {
    const int64_t position = whole.position + first;
    const int64_t length = std::min(whole.length - first, kChunk - position % kChunk);
    SCOPED_TRACE(absl::StrCat("piece of ", length, " at ", position));
    const SequenceSpan piece = {0, length, position, 0};
    OpData<float> data = SliceSpan<float>(before, {first, length, position, 0});
    data.states = states;
    const OpData<float> after = RunOp(backend, op, {length, 0, {&piece, 1}}, data);
    ExpectSameGroup("output", after.outputs, SliceRows<float>(expected.outputs, first, length));
    states = after.states;
    first += length;
  }
  ExpectSameGroup("final state", states, expected.states);
}

void CheckSameBits(Backend* a, Backend* b, const Op& op, const TestBatch& batch, Random* random) {
  SCOPED_TRACE(op.Describe() + ", " + batch.name);
  const OpData<float> data = op.MakeData(batch.rows, batch.slots, random);
  ExpectSameResult(RunOp(a, op, batch.view(), data), RunOp(b, op, batch.view(), data));
}

}  // namespace osdn::kernels
