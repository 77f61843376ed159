#include "engine/model.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model_internal.h"

namespace osdn {

using kernels::BatchView;
using kernels::LinearJob;
using kernels::SequenceSpan;

namespace {

// The packed rows must be tiled by the spans in order, decode rows first.
absl::Status CheckSpans(const BatchView& batch, int32_t slots) {
  int64_t row = 0;
  for (size_t i = 0; i < batch.spans.size(); ++i) {
    const SequenceSpan& span = batch.spans[i];
    const bool decode = static_cast<int64_t>(i) < batch.decode_rows;
    if (span.row != row || span.length < 1 || span.length > batch.rows - row ||
        (decode && span.length != 1) || span.position < 0 || span.slot < 0 || span.slot >= slots) {
      return absl::InvalidArgumentError(absl::StrCat(
          "batch: span ", i, " (row ", span.row, ", length ", span.length, ", position ",
          span.position, ", slot ", span.slot, ") does not continue row ", row, " of ", batch.rows,
          " with ", batch.decode_rows, " decode rows and ", slots, " slots"));
    }
    row += span.length;
  }
  if (row == batch.rows && batch.decode_rows <= static_cast<int64_t>(batch.spans.size())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("batch: ", batch.spans.size(), " spans cover ",
                                                 row, " of ", batch.rows, " rows, of them ",
                                                 batch.decode_rows, " decode rows"));
}

}  // namespace

absl::Status Model::CheckForward(const BatchView& batch, absl::Span<const int32_t> tokens,
                                 absl::Span<const int64_t> logit_rows, const StatePool& pool,
                                 absl::Span<const float> logits) const {
  if (batch.rows < 1 || batch.rows > options_.max_rows ||
      tokens.size() != static_cast<size_t>(batch.rows)) {
    return absl::InvalidArgumentError(absl::StrCat("batch: ", batch.rows, " rows with ",
                                                   tokens.size(), " tokens, want 1 to ",
                                                   options_.max_rows, " of both"));
  }
  const auto max_logit_rows = static_cast<size_t>(options_.max_logit_rows);
  const auto vocab = static_cast<size_t>(arch_.vocab_size);
  if (logit_rows.size() > max_logit_rows || logits.size() != logit_rows.size() * vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch: ", logit_rows.size(), " logit rows (at most ", max_logit_rows,
                     ") with room for ", logits.size(), " logits, vocabulary of ", vocab));
  }
  for (const int64_t row : logit_rows) {
    if (row < 0 || row >= batch.rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("batch: logit row ", row, " of ", batch.rows, " rows"));
    }
  }
  for (const int32_t id : tokens) {
    if (id < 0 || id >= arch_.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is out of range [0, ", arch_.vocab_size, ")"));
    }
  }
  if (pool.layout().slot_floats() != slot_floats_) {
    return absl::InvalidArgumentError(absl::StrCat("state slots of ", pool.layout().slot_floats(),
                                                   " floats, the model's have ", slot_floats_));
  }
  return CheckSpans(batch, pool.capacity());
}

absl::Status Model::Forward(const BatchView& batch, absl::Span<const int32_t> tokens,
                            absl::Span<const int64_t> logit_rows, const StatePool& pool,
                            absl::Span<float> logits) {
  if (absl::Status s = CheckForward(batch, tokens, logit_rows, pool, logits); !s.ok()) return s;
  const kernels::StepInputs step = {.key = this,
                                    .state = pool.At(0).base,
                                    .batch = batch,
                                    .tokens = tokens,
                                    .logit_rows = logit_rows};
  const auto body = [&](const BatchView& padded) { return RunBlocks(padded, step, pool); };
  if (absl::Status s = backend_->RunStep(step, body); !s.ok()) return s;
  if (logit_rows.empty()) return absl::OkStatus();
  return backend_->CopyToHost(logits.data(), scratch_->logits.floats(),
                              logits.size() * sizeof(float));
}

// What a backend may record: ops only.
absl::Status Model::RunBlocks(const BatchView& batch, const kernels::StepInputs& step,
                              const StatePool& pool) {
  kernels::EmbeddingArgs embed;
  embed.ids = step.tokens;
  embed.y = scratch_->x.floats();
  if (absl::Status s = backend_->Embed(*embeddings_, embed); !s.ok()) return s;
  for (int64_t i = 0; i < arch_.num_layers; ++i) {
    const LayerWeights& layer = layers_[static_cast<size_t>(i)];
    const StateLayout::Layer& state = pool.layout().layer(i);
    kernels::MixerLayerArgs mixer;
    mixer.batch = batch;
    mixer.weights = &layer.mixer;
    mixer.s = pool.At(state.s);
    mixer.d = pool.At(state.d);
    mixer.conv_q = pool.At(state.conv_q);
    mixer.conv_k = pool.At(state.conv_k);
    mixer.conv_v = pool.At(state.conv_v);
    mixer.x = embed.y;
    if (absl::Status s = runner_->Mixer(mixer); !s.ok()) return s;
    if (absl::Status s = runner_->Mlp({batch, &layer.mlp, embed.y}); !s.ok()) return s;
  }
  if (step.logit_rows.empty()) return absl::OkStatus();
  return Logits(step.logit_rows);
}

// Final norm and lm_head of the asked rows only.
absl::Status Model::Logits(absl::Span<const int64_t> logit_rows) {
  Scratch& s = *scratch_;
  const auto rows = static_cast<int64_t>(logit_rows.size());
  kernels::GatherRowsArgs gather;
  gather.indices = logit_rows;
  gather.dim = arch_.hidden_size;
  gather.x = s.x.floats();
  gather.y = s.last_x.floats();
  if (absl::Status r = backend_->GatherRows(gather); !r.ok()) return r;

  kernels::RmsNormArgs norm;
  norm.rows = rows;
  norm.dim = arch_.hidden_size;
  norm.eps = static_cast<float>(arch_.norm_eps);
  norm.x = gather.y;
  norm.weight = final_norm_.floats();
  norm.y = gather.y;
  if (absl::Status r = backend_->RmsNorm(norm); !r.ok()) return r;

  BatchView batch;
  batch.rows = rows;
  batch.decode_rows = rows;
  batch.spans = absl::MakeConstSpan(s.logit_spans).first(logit_rows.size());
  const LinearJob head = {lm_head_ != nullptr ? lm_head_.get() : embeddings_.get(),
                          s.logits.floats()};
  return backend_->Linear({batch, norm.y, absl::MakeConstSpan(&head, 1)});
}

}  // namespace osdn
