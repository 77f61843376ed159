#include "engine/admission.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace osdn {

int64_t EffectivePriority(Priority priority, std::chrono::nanoseconds waited,
                          std::chrono::nanoseconds ageing) {
  const int64_t earned = ageing.count() > 0 ? waited / ageing : 0;
  return std::max<int64_t>(static_cast<int64_t>(priority) - earned, 0);
}

void SortForAdmission(std::vector<QueueEntry>* entries) {
  std::sort(entries->begin(), entries->end(), [](const QueueEntry& a, const QueueEntry& b) {
    return std::tuple(a.priority, !a.returning, a.served, a.id) <
           std::tuple(b.priority, !b.returning, b.served, b.id);
  });
}

void FairShare::Arrive(const std::string& client) {
  const auto [it, is_new] = clients_.try_emplace(client);
  ++it->second.requests;
  if (!is_new) return;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const auto& [name, other] : clients_) {
    if (name != client) least = std::min(least, other.served);
  }
  it->second.served = clients_.size() == 1 ? 0 : least;
}

void FairShare::Leave(const std::string& client) {
  const auto it = clients_.find(client);
  if (it != clients_.end() && --it->second.requests == 0) clients_.erase(it);
}

void FairShare::Charge(const std::string& client, int64_t tokens) {
  const auto it = clients_.find(client);
  if (it != clients_.end()) it->second.served += tokens;
}

int64_t FairShare::served(const std::string& client) const {
  const auto it = clients_.find(client);
  return it == clients_.end() ? 0 : it->second.served;
}

}  // namespace osdn
