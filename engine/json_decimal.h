// Numbers between two bounds, as a grammar of their decimal texts.
#ifndef OSDN_ENGINE_JSON_DECIMAL_H_
#define OSDN_ENGINE_JSON_DECIMAL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/grammar.h"

namespace osdn {

// A double keeps so many digits apart: what compares in decimal compares in double.
inline constexpr size_t kMaxDecimalDigits = 15;

struct Decimal {
  bool negative = false;
  int64_t whole = 0;
  std::string fraction{};  // digits behind the point, no zero at the end

  bool operator==(const Decimal&) const = default;
};
// Of a JSON number's text; nullopt where it has more than kMaxDecimalDigits digits.
std::optional<Decimal> ParseDecimal(absl::string_view text);

struct DecimalBound {
  Decimal value;
  bool exclusive = false;
};

// Numbers within the bounds, without exponents, of kMaxDecimalDigits digits at most; nullopt where
// the bounds together have more than these. Below zero never "-0".
std::optional<GrammarBuilder::Node> DecimalRange(const std::optional<DecimalBound>& low,
                                                 const std::optional<DecimalBound>& high,
                                                 GrammarBuilder* builder);

}  // namespace osdn

#endif  // OSDN_ENGINE_JSON_DECIMAL_H_
