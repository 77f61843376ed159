// Checks and times the mixer's kernels on a GPU, with nothing but CUDA: the first thing to run on a
// new machine or after a change of kernels/cuda/chunk_*.cuh.
//   cuda_mixer_bench [check|time|all|once] [JSON_FILE]
// `check` compares every kernel with the float64 token recurrence on fresh random input (the seed
// is printed; OSDN_TEST_SEED repeats it) and ends with a non-zero status where one is off. `time`
// takes medians with a cold L2, beside the copy bandwidth of the same run.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/bench/gpu_bench.h"
#include "kernels/cuda/mixer_launch.cuh"
#include "kernels/reference/activation.h"
#include "kernels/reference/mixer.h"

namespace osdn::kernels::cuda {

namespace {

struct Shape {
  int sequences = 1;
  int tokens = 1;  // a sequence
  int heads = 1;
  int dim = 128;  // K = V
};

struct Variant {
  const char* name;
  bool enabled = true;
  float eta = 0.003F;
  bool apf = false;
  float d_start = 1.0F;
};

template <int kDim>
bool LaunchOf(const MixerLaunch& mixer) {
  return LaunchMixerOf<kDim, kDim>(mixer);
}

bool LaunchDim(int dim, const MixerLaunch& mixer) {
  if (dim == 64) return LaunchOf<64>(mixer);
  if (dim == 128) return LaunchOf<128>(mixer);
  return LaunchOf<256>(mixer);
}

// Random inputs of fused calls: projections, convolution weights, gates, states.
class Problem {
 public:
  Problem(const Shape& shape, const Variant& variant, bool decode, uint64_t seed)
      : shape_(shape), variant_(variant), random_(seed) {
    spec_.heads = shape.heads;
    spec_.key_dim = shape.dim;
    spec_.value_dim = shape.dim;
    spec_.conv_size = 4;
    spec_.norm_eps = 1e-6F;
    spec_.use_apf = variant.apf;
    spec_.q_scale = 1.0F / std::sqrt(static_cast<float>(shape.dim));
    spec_.precond.eta = variant.eta;
    spec_.precond.enabled = variant.enabled;
    rows_ = static_cast<int64_t>(shape.sequences) * shape.tokens;
    const size_t width = static_cast<size_t>(shape.heads) * shape.dim;
    const size_t slots = static_cast<size_t>(shape.sequences) + 1;
    q_ = Bf16s(rows_ * width);
    k_ = Bf16s(rows_ * width);
    v_ = Bf16s(rows_ * width);
    beta_ = Normals(rows_ * shape.heads);
    log_alpha_ = Normals(rows_ * shape.heads);
    for (float& x : log_alpha_) x += 3.0F;
    conv_ = Normals(3 * width * 4, 0.5F);
    norm_ = Normals(shape.dim);
    s_ = Normals(slots * width * shape.dim, 0.3F);
    d_ = Normals(slots * width, 0.02F);
    for (float& x : d_) x += variant.d_start;
    tails_ = Normals(slots * 3 * 3 * width);
    for (float& x : tails_) x = FromBits(RoundToBf16(x));
    decode_ = decode;
    std::vector<SequenceSpan> spans;
    for (int i = 0; i < shape.sequences; ++i) {
      spans.push_back({static_cast<int64_t>(i) * shape.tokens, shape.tokens, decode ? 5 : 0,
                       shape.sequences - i});
    }
    BatchView view;
    view.rows = rows_;
    view.decode_rows = decode ? shape.sequences : 0;
    view.spans = spans;
    plan_ = PlanBatch(view);
    spans_ = std::move(spans);
  }

  // On the device, ready to launch again and again.
  struct Uploaded {
    DeviceArray<uint16_t> q, k, v, o;
    DeviceArray<float> beta, log_alpha, conv, norm, s, d, tails;
    DeviceArray<int32_t> slots;
    DeviceArray<SpanPlan> spans;
    DeviceArray<ChunkPlan> chunks;
    DeviceArray<unsigned char> workspace;
    MixerLayerWeights weights;
    MixerCoreArgs args;
  };

  Uploaded Upload() const {
    const auto nonempty = [](auto values) {
      if (values.empty()) values.resize(1);
      return values;
    };
    Uploaded up{DeviceArray(q_),
                DeviceArray(k_),
                DeviceArray(v_),
                DeviceArray<uint16_t>(q_.size()),
                DeviceArray(beta_),
                DeviceArray(log_alpha_),
                DeviceArray(conv_),
                DeviceArray(norm_),
                DeviceArray(s_),
                DeviceArray(d_),
                DeviceArray(tails_),
                DeviceArray(nonempty(plan_.decode_slots)),
                DeviceArray(nonempty(plan_.spans)),
                DeviceArray(nonempty(plan_.chunks)),
                DeviceArray<unsigned char>(WorkspaceBytes<Bf16>(spec_, rows_)),
                {},
                {}};
    const int64_t width = static_cast<int64_t>(shape_.heads) * shape_.dim;
    up.weights.q_conv = up.conv.get();
    up.weights.k_conv = up.conv.get() + 4 * width;
    up.weights.v_conv = up.conv.get() + 8 * width;
    up.weights.o_norm = up.norm.get();
    MixerCoreArgs& args = up.args;
    args.plan.rows = plan_.rows;
    args.plan.decode_rows = static_cast<int32_t>(plan_.decode_slots.size());
    args.plan.num_spans = static_cast<int32_t>(plan_.spans.size());
    args.plan.num_chunks = static_cast<int32_t>(plan_.chunks.size());
    args.plan.decode_slots = up.slots.get();
    args.plan.spans = up.spans.get();
    args.plan.chunks = up.chunks.get();
    args.type = ActivationType::kBF16;
    args.q = up.q.get();
    args.k = up.k.get();
    args.v = up.v.get();
    args.beta = up.beta.get();
    args.log_alpha = variant_.apf ? up.log_alpha.get() : nullptr;
    args.s = {up.s.get(), width * shape_.dim};
    args.d = {up.d.get(), width};
    args.conv_q = {up.tails.get(), 9 * width};
    args.conv_k = {up.tails.get() + 3 * width, 9 * width};
    args.conv_v = {up.tails.get() + 6 * width, 9 * width};
    args.o = up.o.get();
    return up;
  }

  const LayerSpec& spec() const { return spec_; }
  const BatchPlan& plan() const { return plan_; }

  // The largest error of o, S, d and tails, each relative to its largest value.
  double Check(int multiprocessors) {
    Uploaded up = Upload();
    up.args.weights = &up.weights;
    StreamLauncher launcher(nullptr, true);
    LaunchDim(shape_.dim, {spec_, up.args, multiprocessors, up.workspace.get(), &launcher});
    Must(launcher.error(), "mixer launch");
    Must(cudaDeviceSynchronize(), "mixer");
    const std::vector<uint16_t> o_bits = up.o.Read();
    std::vector<float> o(o_bits.size());
    std::transform(o_bits.begin(), o_bits.end(), o.begin(), FromBits);
    const std::vector<float> s = up.s.Read();
    const std::vector<float> d = up.d.Read();
    const std::vector<float> tails = up.tails.Read();
    Errors errors;
    for (const SequenceSpan& span : spans_) {
      for (int h = 0; h < shape_.heads; ++h) CheckHead(span, h, o, s, d, &errors);
      CheckTails(span, tails, &errors);
    }
    std::printf("  o %.2e  S %.2e  d %.2e  tails %.2e", errors.o.Relative(), errors.s.Relative(),
                errors.d.Relative(), errors.tails.Relative());
    // Against 1e-2: bf16 operands. What d adds a token is rounded, so its error grows with eta.
    return std::max({errors.o.Relative() / 3, errors.s.Relative() / 3,
                     errors.d.Relative() / (0.1 + variant_.eta), errors.tails.Relative()});
  }

 private:
  struct Error {
    double worst = 0;
    double largest = 0;
    void Add(double actual, double expected) {
      const double error = std::abs(actual - expected);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
      largest = std::max(largest, std::abs(expected));
    }
    double Relative() const { return largest == 0 ? worst : worst / largest; }
  };
  struct Errors {
    Error o, s, d, tails;
  };

  std::vector<float> Normals(size_t count, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::vector<uint16_t> Bf16s(size_t count) {
    std::vector<uint16_t> bits(count);
    std::normal_distribution<float> normal;
    for (uint16_t& value : bits) value = RoundToBf16(normal(random_));
    return bits;
  }

  // Convolved and activated channels of a head, [tokens][dim].
  std::vector<double> Convolved(const SequenceSpan& span, int h, int which,
                                const std::vector<uint16_t>& x) const {
    const int64_t width = static_cast<int64_t>(shape_.heads) * shape_.dim;
    const float* tail = tails_.data() + (span.slot * 9 + which * 3) * width;
    std::vector<double> y;
    for (int64_t t = 0; t < span.length; ++t) {
      for (int i = 0; i < shape_.dim; ++i) {
        const int64_t c = static_cast<int64_t>(h) * shape_.dim + i;
        double sum = 0;
        for (int j = 0; j < 4; ++j) {
          const int64_t at = t - 3 + j;
          const double input =
              at < 0 ? tail[(at + 3) * width + c] : FromBits(x[(span.row + at) * width + c]);
          sum += conv_[(which * width + c) * 4 + j] * input;
        }
        y.push_back(reference::Silu(sum));
      }
    }
    return y;
  }

  void Normalise(std::vector<double>* x, double scale) const {
    for (size_t first = 0; first < x->size(); first += static_cast<size_t>(shape_.dim)) {
      double sum = 1e-6;
      for (int i = 0; i < shape_.dim; ++i) sum += (*x)[first + i] * (*x)[first + i];
      for (int i = 0; i < shape_.dim; ++i) (*x)[first + i] *= scale / std::sqrt(sum);
    }
  }

  void CheckHead(const SequenceSpan& span, int h, const std::vector<float>& o_actual,
                 const std::vector<float>& s_actual, const std::vector<float>& d_actual,
                 Errors* errors) const {
    const int dim = shape_.dim;
    std::vector<double> q = Convolved(span, h, 0, q_);
    std::vector<double> k = Convolved(span, h, 1, k_);
    const std::vector<double> v = Convolved(span, h, 2, v_);
    Normalise(&q, spec_.q_scale);
    Normalise(&k, 1);
    std::vector<double> beta;
    std::vector<double> log_alpha;
    for (int64_t t = 0; t < span.length; ++t) {
      const auto gate = static_cast<size_t>((span.row + t) * shape_.heads + h);
      beta.push_back(reference::Sigmoid<double>(beta_[gate]));
      log_alpha.push_back(reference::LogSigmoid<double>(log_alpha_[gate]));
    }
    const size_t s_first = (static_cast<size_t>(span.slot) * shape_.heads + h) * dim * dim;
    const size_t d_first = (static_cast<size_t>(span.slot) * shape_.heads + h) * dim;
    std::vector<double> s(s_.begin() + s_first, s_.begin() + s_first + dim * dim);
    std::vector<double> d(d_.begin() + d_first, d_.begin() + d_first + dim);
    std::vector<double> o(v.size());
    reference::MixerTokens<double>({.tokens = span.length,
                                    .key_dim = dim,
                                    .value_dim = dim,
                                    .precond = spec_.precond,
                                    .q = q.data(),
                                    .k = k.data(),
                                    .v = v.data(),
                                    .beta = beta.data(),
                                    .log_alpha = variant_.apf ? log_alpha.data() : nullptr,
                                    .s = s.data(),
                                    .d = d.data(),
                                    .o = o.data()});
    for (int64_t t = 0; t < span.length; ++t) {
      double sum = 0;
      for (int i = 0; i < dim; ++i) sum += o[t * dim + i] * o[t * dim + i];
      const double factor = 1 / std::sqrt(sum / dim + spec_.norm_eps);
      for (int i = 0; i < dim; ++i) {
        const int64_t place = ((span.row + t) * shape_.heads + h) * dim + i;
        errors->o.Add(o_actual[place], o[t * dim + i] * factor * norm_[i]);
      }
    }
    for (int i = 0; i < dim * dim; ++i) errors->s.Add(s_actual[s_first + i], s[i]);
    for (int i = 0; i < dim; ++i) errors->d.Add(d_actual[d_first + i], d[i]);
  }

  void CheckTails(const SequenceSpan& span, const std::vector<float>& actual,
                  Errors* errors) const {
    const int64_t width = static_cast<int64_t>(shape_.heads) * shape_.dim;
    const std::vector<uint16_t>* inputs[] = {&q_, &k_, &v_};
    for (int which = 0; which < 3; ++which) {
      for (int j = 0; j < 3; ++j) {
        const int64_t at = span.length - 3 + j;
        for (int64_t c = 0; c < width; ++c) {
          const int64_t tail = (span.slot * 9 + which * 3) * width + c;
          const float expected = at < 0 ? tails_[tail + (at + 3) * width]
                                        : FromBits((*inputs[which])[(span.row + at) * width + c]);
          errors->tails.Add(actual[tail + j * width], expected);
        }
      }
    }
  }

  Shape shape_;
  Variant variant_;
  std::mt19937_64 random_;
  LayerSpec spec_;
  int64_t rows_ = 0;
  bool decode_ = false;
  std::vector<uint16_t> q_, k_, v_;
  std::vector<float> beta_, log_alpha_, conv_, norm_, s_, d_, tails_;
  std::vector<SequenceSpan> spans_;
  BatchPlan plan_;
};

// Launches one kernel of a sequence only, the `wanted`-th.
class OneOf {
 public:
  OneOf(StreamLauncher* launch, int wanted) : launch_(launch), wanted_(wanted) {}
  template <class Kernel>
  bool Launch(Grid grid, const typename Kernel::Args& args) {
    return count_++ != wanted_ || launch_->template Launch<Kernel>(grid, args);
  }

 private:
  StreamLauncher* launch_;
  int wanted_;
  int count_ = 0;
};

// The chunk op alone, inputs prepared: what fla's chunk_delta_rule computes.
template <int kDim>
void TimeChunkOp(const Shape& shape, int multiprocessors, Timer* timer, Json* json) {
  double totals[2] = {};
  for (const bool enabled : {true, false}) {
    // So small an eta that d stays inside the box however often the state is run through.
    const Variant variant{"", enabled, 1e-7F};
    Problem problem(shape, variant, false, 1);
    Problem::Uploaded up = problem.Upload();
    up.args.weights = &up.weights;
    StreamLauncher launcher(timer->stream(), true);
    // Once whole: leaves prepared inputs in the workspace.
    LaunchDim(shape.dim, {problem.spec(), up.args, multiprocessors, up.workspace.get(), &launcher});
    Must(cudaStreamSynchronize(timer->stream()), "prefill");
    PrepareArgs<Bf16> prepare;
    ChunkArgs chunk;
    WorkspacePieces pieces(up.workspace.get());
    LayOutInputs(problem.spec(), problem.plan().rows, &prepare, &pieces);
    LayOutChunks(problem.spec(), problem.plan().rows, &chunk, &pieces);
    chunk.chunks = up.chunks.get();
    chunk.spans = up.spans.get();
    chunk.heads = shape.heads;
    chunk.precond = problem.spec().precond;
    chunk.q = prepare.q_out;
    chunk.k = prepare.k_out;
    chunk.v = prepare.v_out;
    chunk.beta = prepare.beta_out;
    chunk.s = up.args.s;
    chunk.d = up.args.d;
    if (!enabled) chunk.kt = prepare.k_out;
    chunk.o = reinterpret_cast<Bf16*>(up.o.get());
    const auto whole = [&] {
      LaunchChunks<kDim, kDim>(launcher, up.args.plan, multiprocessors, chunk);
    };
    totals[enabled ? 0 : 1] = timer->MedianOfGraph(20, whole);
    const std::string name = "chunk." + std::to_string(shape.sequences) + "x" +
                             std::to_string(shape.tokens) + ".H" + std::to_string(shape.heads) +
                             ".D" + std::to_string(kDim) + (enabled ? ".osdn" : ".delta");
    json->Add(name + ".us", totals[enabled ? 0 : 1]);
    std::printf("%-34s %8.1f us ", name.c_str(), totals[enabled ? 0 : 1]);
    const int kernels = enabled ? 4 : 2;
    const char* names[] = {"gram", "precond", "local", "state"};
    for (int i = 0; i < kernels; ++i) {
      const double time = timer->Median(8, [&] {
        OneOf one(&launcher, i);
        LaunchChunks<kDim, kDim>(one, up.args.plan, multiprocessors, chunk);
      });
      const char* part = names[enabled ? i : i + 2];
      std::printf(" %s %.1f", part, time);
      json->Add(name + "." + part + "_us", time);
    }
    std::printf("\n");
    Must(launcher.error(), "launch");
  }
  std::printf("%-34s %8.3f\n", "  osdn / delta", totals[0] / totals[1]);
}

void TimeDecode(int batch, int heads, int dim, int multiprocessors, double copy_gbps, Timer* timer,
                Json* json) {
  Problem problem({batch, 1, heads, dim}, {"", true}, true, 1);
  Problem::Uploaded up = problem.Upload();
  up.args.weights = &up.weights;
  StreamLauncher launcher(timer->stream(), true);
  const double time = timer->MedianOfGraph(30, [&] {
    LaunchDim(dim, {problem.spec(), up.args, multiprocessors, up.workspace.get(), &launcher});
  });
  Must(launcher.error(), "launch");
  const double bytes = static_cast<double>(batch) * heads * (2.0 * dim * dim * 4 + dim * 40);
  const std::string name = "decode.B" + std::to_string(batch) + ".H" + std::to_string(heads) +
                           ".D" + std::to_string(dim);
  const double gbps = bytes / time * 1e-3;
  std::printf("%-34s %8.2f us  %7.0f GB/s  %.2f of copy\n", name.c_str(), time, gbps,
              gbps / copy_gbps);
  json->Add(name + ".us", time);
  json->Add(name + ".gbps", gbps);
}

bool CheckAll(int multiprocessors) {
  std::random_device device;
  const char* chosen = std::getenv("OSDN_TEST_SEED");
  const uint64_t seed = chosen != nullptr ? std::strtoull(chosen, nullptr, 10) : device();
  std::printf("check: OSDN_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  const Variant variants[] = {{"osdn", true, 0.003F},
                              {"apf", true, 0.1F, true},
                              {"box", true, 1.0F, false, 1.85F},
                              {"plain", false}};
  const Shape prefills[] = {{1, 1, 2, 128},  {3, 63, 2, 128},   {2, 64, 2, 128}, {2, 65, 3, 128},
                            {1, 300, 2, 64}, {1, 1000, 2, 128}, {2, 200, 2, 256}};
  bool good = true;
  for (const Variant& variant : variants) {
    for (Shape shape : prefills) {
      for (const bool decode : {false, true}) {
        if (decode && shape.tokens != 1 && shape.tokens != 65 && shape.dim == 128) continue;
        if (decode) shape.sequences = 5;
        if (decode) shape.tokens = 1;
        Problem problem(shape, variant, decode, seed);
        std::printf("%-6s %s %dx%d H%d D%d", variant.name, decode ? "decode " : "prefill",
                    shape.sequences, shape.tokens, shape.heads, shape.dim);
        const bool ok = problem.Check(multiprocessors) < 1e-2;
        std::printf("  %s\n", ok ? "ok" : "WRONG");
        good = good && ok;
      }
    }
  }
  return good;
}

double CopyBandwidth(Timer* timer) {
  const size_t bytes = size_t{1} << 30;
  DeviceArray<unsigned char> from(bytes);
  DeviceArray<unsigned char> to(bytes);
  const double time = timer->Median(10, [&] {
    Must(cudaMemcpyAsync(to.get(), from.get(), bytes, cudaMemcpyDeviceToDevice, timer->stream()),
         "copy");
  });
  return 2.0 * static_cast<double>(bytes) / time * 1e-3;
}

void TimeAll(int multiprocessors, Json* json) {
  Timer timer;
  const double copy = CopyBandwidth(&timer);
  std::printf("copy bandwidth %.0f GB/s\n", copy);
  json->Add("copy_gbps", copy);
  for (const int heads : {8, 16}) {
    for (const auto& [sequences, tokens] : {std::pair{1, 8192}, {8, 2048}, {32, 512}}) {
      TimeChunkOp<128>({sequences, tokens, heads, 128}, multiprocessors, &timer, json);
    }
  }
  TimeChunkOp<64>({8, 2048, 8, 64}, multiprocessors, &timer, json);
  TimeChunkOp<256>({8, 2048, 8, 256}, multiprocessors, &timer, json);
  for (const int batch : {1, 8, 32, 64, 256}) {
    TimeDecode(batch, 8, 128, multiprocessors, copy, &timer, json);
  }
  TimeDecode(64, 16, 128, multiprocessors, copy, &timer, json);
}

// Each kernel once, for a profiler.
void RunOnce(const Shape& shape, bool decode, int multiprocessors) {
  Problem problem(shape, {"", true, 1e-7F}, decode, 1);
  Problem::Uploaded up = problem.Upload();
  up.args.weights = &up.weights;
  StreamLauncher launcher(nullptr, true);
  LaunchDim(shape.dim, {problem.spec(), up.args, multiprocessors, up.workspace.get(), &launcher});
  Must(launcher.error(), "launch");
  Must(cudaDeviceSynchronize(), "mixer");
}

int Main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  if (what != "check" && what != "time" && what != "all" && what != "once") {
    std::fprintf(stderr, "usage: cuda_mixer_bench [check|time|all|once] [JSON_FILE]\n");
    return 2;
  }
  cudaDeviceProp properties;
  Must(cudaGetDeviceProperties(&properties, 0), "no device");
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  if (what == "once") {
    RunOnce({1, 8192, 8, 128}, false, properties.multiProcessorCount);
    RunOnce({256, 1, 8, 128}, true, properties.multiProcessorCount);
    return 0;
  }
  const bool good = what == "time" || CheckAll(properties.multiProcessorCount);
  Json json;
  if (what != "check") TimeAll(properties.multiProcessorCount, &json);
  if (argc > 2) {
    if (std::FILE* file = std::fopen(argv[2], "w")) {
      json.Add("check_passed", good ? 1 : 0);
      std::fprintf(file, "%s\n}\n", json.text.substr(0, json.text.size() - 2).c_str());
      std::fclose(file);
    }
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace osdn::kernels::cuda

int main(int argc, char** argv) { return osdn::kernels::cuda::Main(argc, argv); }
