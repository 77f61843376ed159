#include "engine/json_decimal.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/json_text.h"

namespace osdn {
namespace {

using Node = GrammarBuilder::Node;

// Digits behind the point where the bounds have less, and their whole parts leave room.
constexpr size_t kUsualFraction = 6;

class Magnitudes {
 public:
  Magnitudes(GrammarBuilder* builder, size_t fraction_digits)
      : builder_(*builder), text_(builder), fraction_digits_(fraction_digits) {}

  // From one to the other, signs left out.
  Node Range(const DecimalBound& low, const DecimalBound& high) {
    const int64_t first = low.value.whole;
    const int64_t last = high.value.whole;
    const Edge from{low.value.fraction, low.exclusive};
    const Edge to{high.value.fraction, high.exclusive};
    if (first > last) return Nothing();
    if (first == last) return Number(text_.Integer(first, first), Between(0, from, to));
    std::vector<Node> choices = {Number(text_.Integer(first, first), AtLeast(0, from)),
                                 Number(text_.Integer(last, last), AtMost(0, to))};
    if (first + 1 < last) {
      choices.push_back(
          Number(text_.Integer(first + 1, last - 1), {Digits(0, 1), /*may_end=*/true}));
    }
    return builder_.Choice(std::move(choices));
  }

 private:
  struct Edge {
    absl::string_view fraction;
    bool exclusive = false;
    // Nothing but zeros from the i-th digit on.
    bool IsZero(size_t i) const { return i >= fraction.size(); }
    char Digit(size_t i) const { return IsZero(i) ? '0' : fraction[i]; }
  };
  // What may follow at a digit behind the point: one digit or more, or the end.
  struct Rest {
    Node digits;
    bool may_end = false;
  };

  Node Nothing() { return builder_.OneOf({}); }
  // One of these; none where low > high.
  Node Digit(char low, char high) {
    if (low > high) return Nothing();
    return builder_.OneOf({{static_cast<unsigned char>(low), static_cast<unsigned char>(high)}});
  }
  Node Repeated(Node digit, size_t at, size_t min) {
    const size_t room = fraction_digits_ - std::min(at, fraction_digits_);
    return room < min ? Nothing() : builder_.Repeat(digit, min, room);
  }
  Node Digits(size_t at, size_t min) { return Repeated(Digit('0', '9'), at, min); }
  Node Then(Node digit, const Rest& rest) {
    return builder_.Sequence({digit, rest.may_end ? builder_.Optional(rest.digits) : rest.digits});
  }
  Node Then(Node digit, size_t at) { return builder_.Sequence({digit, Digits(at, 0)}); }
  Node Number(Node whole, const Rest& rest) {
    const Node fraction = builder_.Sequence({builder_.Literal("."), rest.digits});
    return builder_.Sequence({whole, rest.may_end ? builder_.Optional(fraction) : fraction});
  }

  // NOLINTNEXTLINE(misc-no-recursion): a level a digit
  Rest AtLeast(size_t i, const Edge& edge) {
    if (i >= fraction_digits_) return {Nothing(), edge.IsZero(i) && !edge.exclusive};
    if (edge.IsZero(i) && !edge.exclusive) return {Digits(i, 1), true};
    const char d = edge.Digit(i);
    return {builder_.Choice({Then(Digit(static_cast<char>(d + 1), '9'), i + 1),
                             Then(Digit(d, d), AtLeast(i + 1, edge))}),
            false};
  }

  // NOLINTNEXTLINE(misc-no-recursion): see AtLeast
  Rest AtMost(size_t i, const Edge& edge) {
    if (edge.IsZero(i)) {
      if (edge.exclusive) return {Nothing(), false};
      return {Repeated(Digit('0', '0'), i, 1), true};
    }
    const char d = edge.Digit(i);
    return {builder_.Choice({Then(Digit('0', static_cast<char>(d - 1)), i + 1),
                             Then(Digit(d, d), AtMost(i + 1, edge))}),
            true};
  }

  // NOLINTNEXTLINE(misc-no-recursion): see AtLeast
  Rest Between(size_t i, const Edge& from, const Edge& to) {
    const bool may_end = from.IsZero(i) && !from.exclusive && !(to.IsZero(i) && to.exclusive);
    if (to.IsZero(i)) {
      return {may_end ? Repeated(Digit('0', '0'), i, 1) : Nothing(), may_end};
    }
    const char a = from.Digit(i);
    const char b = to.Digit(i);
    if (a > b) return {Nothing(), false};
    if (a == b) return {Then(Digit(a, a), Between(i + 1, from, to)), may_end};
    return {builder_.Choice({Then(Digit(a, a), AtLeast(i + 1, from)),
                             Then(Digit(static_cast<char>(a + 1), static_cast<char>(b - 1)), i + 1),
                             Then(Digit(b, b), AtMost(i + 1, to))}),
            may_end};
  }

  GrammarBuilder& builder_;
  JsonText text_;
  const size_t fraction_digits_;
};

bool IsZero(const Decimal& value) { return value.whole == 0 && value.fraction.empty(); }

DecimalBound Positive(DecimalBound bound) {
  bound.value.negative = false;
  return bound;
}

}  // namespace

std::optional<Decimal> ParseDecimal(absl::string_view text) {
  Decimal decimal;
  decimal.negative = !text.empty() && text[0] == '-';
  if (decimal.negative) text.remove_prefix(1);
  const size_t e = std::min(text.find_first_of("eE"), text.size());
  int exponent = 0;
  if (e < text.size() && !absl::SimpleAtoi(text.substr(e + 1), &exponent)) return std::nullopt;
  const absl::string_view mantissa = text.substr(0, e);
  const size_t point = std::min(mantissa.find('.'), mantissa.size());
  std::string digits = absl::StrCat(mantissa.substr(0, point),
                                    point < mantissa.size() ? mantissa.substr(point + 1) : "");
  auto whole_digits = static_cast<int64_t>(point) + exponent;
  constexpr auto kMost = static_cast<int64_t>(kMaxDecimalDigits);
  if (digits.find_first_not_of('0') == std::string::npos) return Decimal();
  if (whole_digits < -kMost || whole_digits > 2 * kMost) return std::nullopt;
  if (whole_digits < 0) {
    digits.insert(0, static_cast<size_t>(-whole_digits), '0');
    whole_digits = 0;
  }
  const auto whole_size = static_cast<size_t>(whole_digits);
  if (digits.size() < whole_size) digits.append(whole_size - digits.size(), '0');
  std::string whole = digits.substr(0, whole_size);
  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size()));
  decimal.fraction = digits.substr(whole_size);
  decimal.fraction.erase(decimal.fraction.find_last_not_of('0') + 1);
  if (whole.size() + decimal.fraction.size() > kMaxDecimalDigits) return std::nullopt;
  if (!whole.empty() && !absl::SimpleAtoi(whole, &decimal.whole)) return std::nullopt;
  return decimal;
}

std::optional<Node> DecimalRange(const std::optional<DecimalBound>& low,
                                 const std::optional<DecimalBound>& high, GrammarBuilder* builder) {
  size_t whole_digits = 1;
  size_t fraction_digits = 0;
  for (const std::optional<DecimalBound>* bound : {&low, &high}) {
    if (!bound->has_value()) continue;
    whole_digits = std::max(whole_digits, absl::StrCat((*bound)->value.whole).size());
    fraction_digits = std::max(fraction_digits, (*bound)->value.fraction.size());
  }
  if (whole_digits + fraction_digits > kMaxDecimalDigits) return std::nullopt;
  fraction_digits =
      std::max(fraction_digits, std::min(kUsualFraction, kMaxDecimalDigits - whole_digits));
  Decimal most;
  for (size_t i = fraction_digits; i < kMaxDecimalDigits; ++i) most.whole = 10 * most.whole + 9;
  most.fraction.assign(fraction_digits, '9');
  Decimal least = most;
  least.negative = true;
  const DecimalBound from = low.value_or(DecimalBound{least});
  const DecimalBound to = high.value_or(DecimalBound{most});
  const auto is_below_zero = [](const Decimal& d) { return d.negative && !IsZero(d); };
  Magnitudes magnitudes(builder, fraction_digits);
  std::vector<Node> choices = {builder->OneOf({})};
  if (is_below_zero(from.value)) {
    const DecimalBound above_zero = {Decimal(), /*exclusive=*/true};
    const DecimalBound nearest = is_below_zero(to.value) ? Positive(to) : above_zero;
    choices.push_back(
        builder->Sequence({builder->Literal("-"), magnitudes.Range(nearest, Positive(from))}));
  }
  if (!is_below_zero(to.value)) {
    const DecimalBound first = is_below_zero(from.value) ? DecimalBound{} : Positive(from);
    choices.push_back(magnitudes.Range(first, Positive(to)));
  }
  return builder->Choice(std::move(choices));
}

}  // namespace osdn
