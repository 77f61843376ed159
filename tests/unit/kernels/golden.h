// Golden vectors of the mixer (tests/data/golden): a reader for small, trusted safetensors files.
#ifndef OSDN_TESTS_UNIT_KERNELS_GOLDEN_H_
#define OSDN_TESTS_UNIT_KERNELS_GOLDEN_H_

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "kernels/include/mixer.h"
#include "nlohmann/json.hpp"
#include "tests/unit/test_paths.h"

namespace osdn::kernels {

struct GoldenTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct GoldenMixer {
  std::map<std::string, GoldenTensor> tensors;
  PreconditionerParams precond;

  const std::vector<float>& operator[](const std::string& name) const {
    return tensors.at(name).values;
  }
  int64_t tokens() const { return tensors.at("k").shape[0]; }
  int64_t key_dim() const { return tensors.at("k").shape[1]; }
  int64_t value_dim() const { return tensors.at("v").shape[1]; }
};

inline std::vector<std::string> GoldenMixerNames() {
  return {"small", "wide", "head128", "apf", "apf_decay", "box", "neg_eigval"};
}

// Throws on a missing or malformed file, which fails the test.
inline GoldenMixer ReadGoldenMixer(const std::string& name) {
  const std::string path = TestDataDir() + "/golden/mixer_" + name + ".safetensors";
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < 8) throw std::runtime_error(path + ": missing or too short");
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, header_size));
  GoldenMixer golden;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") continue;
    GoldenTensor& tensor = golden.tensors[key];
    entry.at("shape").get_to(tensor.shape);
    const auto [begin, end] = entry.at("data_offsets").get<std::pair<uint64_t, uint64_t>>();
    const std::string data = bytes.substr(8 + header_size + begin, end - begin);
    tensor.values.resize(data.size() / sizeof(float));
    std::memcpy(tensor.values.data(), data.data(), data.size());
  }
  const auto number = [&header](const char* key) {
    return std::stof(header.at("__metadata__").at(key).get<std::string>());
  };
  golden.precond.eta = number("eta");
  golden.precond.eps = number("eps");
  golden.precond.d_min = number("d_min");
  golden.precond.d_max = number("d_max");
  golden.precond.anchor = number("anchor");
  return golden;
}

}  // namespace osdn::kernels

#endif  // OSDN_TESTS_UNIT_KERNELS_GOLDEN_H_
