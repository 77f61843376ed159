// Who is next: priority classes with ageing, fairness between clients. Pure, tested alone.
#ifndef OSDN_ENGINE_ADMISSION_H_
#define OSDN_ENGINE_ADMISSION_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace osdn {

enum class Priority : uint8_t { kHigh, kNormal, kLow };

// When and for whom a request runs.
struct SchedulingParams {
  Priority priority = Priority::kNormal;
  std::string client{};  // whom its tokens count for
  // Past it nobody waits for the answer any more: the request ends with DEADLINE_EXCEEDED, in the
  // queue without any computation.
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  std::chrono::milliseconds max_time{0};  // from Submit; then it ends with kTime; 0: no limit
};

// The class that a request of `priority` counts for after waiting so long: one better for every
// `ageing` waited, so that nobody waits for ever. 0 is the best.
int64_t EffectivePriority(Priority priority, std::chrono::nanoseconds waited,
                          std::chrono::nanoseconds ageing);

struct QueueEntry {
  uint64_t id = 0;         // ascending in order of arrival
  int64_t priority = 0;    // effective
  bool returning = false;  // was running and gave up its slot
  int64_t served = 0;      // tokens its client got (FairShare)
};
// By class; in it returning sequences first, then clients that got less, then arrival.
void SortForAdmission(std::vector<QueueEntry>* entries);

// Tokens by client, as far as they matter for fairness. A client that comes (back) starts with as
// little as the least served of those who are there: being away earns no credit and costs none.
// One thread.
class FairShare {
 public:
  // A request of `client` came, ended.
  void Arrive(const std::string& client);
  void Leave(const std::string& client);
  // `client` is there.
  void Charge(const std::string& client, int64_t tokens);
  int64_t served(const std::string& client) const;
  size_t clients() const { return clients_.size(); }

 private:
  struct Client {
    int64_t requests = 0;
    int64_t served = 0;
  };
  std::map<std::string, Client> clients_;  // those with requests
};

}  // namespace osdn

#endif  // OSDN_ENGINE_ADMISSION_H_
