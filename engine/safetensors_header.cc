#include "engine/safetensors_header.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace osdn::internal {
namespace {

using nlohmann::json;

constexpr char kMetadataKey[] = "__metadata__";
constexpr size_t kMaxDimensions = 16;

// Event handler that knows the grammar {name: {dtype, shape, data_offsets}, __metadata__: {string:
// string}}. Returning false stops the parser; error_ then says why.
class HeaderHandler : public nlohmann::json_sax<json> {
 public:
  explicit HeaderHandler(RawHeader* header) : header_(header) {}

  const std::string& error() const { return error_; }

  bool start_object(std::size_t /*elements*/) override {
    if (depth_ > 1) return Fail("an object where none belongs");
    ++depth_;
    fields_.clear();
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ != 1 || in_metadata_) return true;
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!fields_.contains(field)) return Fail(absl::StrCat("no ", field));
    }
    tensor_->begin = offsets_[0];
    tensor_->end = offsets_[1];
    return true;
  }

  bool key(string_t& value) override {
    if (depth_ == 1) return TopLevelKey(value);
    if (!fields_.insert(value).second) return Fail(absl::StrCat("key \"", value, "\" twice"));
    field_ = value;
    if (in_metadata_ || value == "dtype" || value == "shape" || value == "data_offsets")
      return true;
    return Fail(absl::StrCat("unknown key \"", value, "\""));
  }

  bool start_array(std::size_t /*elements*/) override {
    const bool expected = depth_ == 2 && array_ == nullptr && !in_metadata_ && field_ != "dtype";
    if (!expected) return Fail("an array where none belongs");
    array_ = field_ == "shape" ? &tensor_->shape : &offsets_;
    array_->clear();
    return true;
  }

  bool end_array() override {
    if (array_ == &offsets_ && offsets_.size() != 2)
      return Fail("data_offsets must be two numbers");
    array_ = nullptr;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (array_ == nullptr) return Fail("a number where none belongs");
    if (array_->size() == kMaxDimensions) {
      return Fail(absl::StrCat("more than ", kMaxDimensions, " dimensions"));
    }
    array_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (array_ == nullptr && depth_ == 2) {
      if (in_metadata_) {
        header_->metadata[field_] = value;
        return true;
      }
      if (field_ == "dtype") {
        tensor_->dtype = value;
        return true;
      }
    }
    return Fail("a string where none belongs");
  }

  bool null() override { return Fail("null where none belongs"); }
  bool boolean(bool /*value*/) override { return Fail("a boolean where none belongs"); }
  bool number_integer(number_integer_t value) override {
    return Fail(absl::StrCat("negative number ", value));
  }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return Fail(absl::StrCat("not a whole number of 64 bits: ", text));
  }
  bool binary(binary_t& /*value*/) override { return Fail("binary data"); }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*exception*/) override {
    return Fail(absl::StrCat("not valid JSON at byte ", position));
  }

 private:
  bool TopLevelKey(const string_t& value) {
    name_ = value;
    in_metadata_ = value == kMetadataKey;
    if (in_metadata_) {
      if (std::exchange(seen_metadata_, true)) return Fail("appears twice");
      return true;
    }
    const auto [it, inserted] = header_->tensors.try_emplace(value);
    if (!inserted) return Fail("appears twice");
    tensor_ = &it->second;
    return true;
  }

  bool Fail(const std::string& what) {
    error_ = name_.empty() ? absl::StrCat("header: ", what)
                           : absl::StrCat("header, entry \"", name_, "\": ", what);
    return false;
  }

  RawHeader* header_;
  int depth_ = 0;
  std::string name_;  // top-level key being read
  bool in_metadata_ = false;
  bool seen_metadata_ = false;
  RawTensor* tensor_ = nullptr;
  std::string field_;  // key being read inside the entry
  std::set<std::string> fields_;
  std::vector<uint64_t>* array_ = nullptr;  // being filled
  std::vector<uint64_t> offsets_;
  std::string error_;
};

}  // namespace

absl::StatusOr<RawHeader> ParseHeader(std::string_view text) {
  RawHeader header;
  HeaderHandler handler(&header);
  if (!json::sax_parse(text.begin(), text.end(), &handler)) {
    return absl::InvalidArgumentError(handler.error());
  }
  return header;
}

std::string HeaderToJson(const RawHeader& header) {
  std::vector<const std::pair<const std::string, RawTensor>*> order;
  for (const auto& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  if (!header.metadata.empty()) out[kMetadataKey] = header.metadata;
  for (const auto* item : order) {
    const RawTensor& tensor = item->second;
    out[item->first] = {{"dtype", tensor.dtype},
                        {"shape", tensor.shape},
                        {"data_offsets", {tensor.begin, tensor.end}}};
  }
  // Names that are not UTF-8 must not throw: they become U+FFFD.
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace osdn::internal
