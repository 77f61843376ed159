#include "server/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/strip.h"
#include "absl/time/time.h"

namespace osdn {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::string_view kRequest = "request ";

// Clients' bytes may be anything.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    absl::string_view text(message.payload.data(), message.payload.size());
    const auto level = spdlog::level::to_string_view(message.level);
    Json json = {{"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(message.time),
                                           absl::UTCTimeZone())},
                 {"level", std::string(level.data(), level.size())}};
    if (absl::ConsumePrefix(&text, kRequest)) {
      json["message"] = "request";
      json["request"] = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    } else {
      json["message"] = std::string(text);
    }
    const std::string line = Dump(json) + "\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

std::shared_ptr<spdlog::logger> MakeLogger(const std::string& level, const std::string& format) {
  auto logger = std::make_shared<spdlog::logger>(
      "osdn-server", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  if (format == "json") {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  }
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::debug);
  return logger;
}

void LogRequest(spdlog::logger* logger, const RequestLog& request) {
  if (!logger->should_log(spdlog::level::debug)) return;
  Json json = {{"method", request.method},
               {"code", request.code},
               {"ms", request.milliseconds},
               {"prompt_tokens", request.prompt_tokens},
               {"completion_tokens", request.completion_tokens},
               {"request_id", request.request_id}};
  if (!request.key.empty()) json["key"] = request.key;
  if (!request.traceparent.empty()) json["traceparent"] = request.traceparent;
  logger->debug("{}{}", std::string(kRequest), Dump(json));
}

}  // namespace osdn
