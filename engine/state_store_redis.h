// Saved states in Redis: shared by every server that has the same Redis and prefix.
#ifndef OSDN_ENGINE_STATE_STORE_REDIS_H_
#define OSDN_ENGINE_STATE_STORE_REDIS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/redis_client.h"
#include "engine/state_store.h"

namespace osdn {

// A state is one hash with its record and its bytes, which Redis itself lets expire. Writing,
// quotas and indexes change together, in scripts: a server that dies leaves all or nothing. What
// Redis acknowledged is as safe as its own persistence (appendonly, replicas).
//
// Every key begins with "PREFIX:{osdn}:", so that a cluster keeps them together:
//   state:ID     hash: record (JSON), blob
//   owner:NAME   sorted set of the owner's ids, in their order
//   expiry       sorted set: ids by the time they expire
//   held         hash: id -> "BYTES OWNER", of all that usage counts
//   usage        hash: bytes, states, expired
//
// While Redis cannot be reached every method is UNAVAILABLE, and nothing else of the server waits
// for it. UNAVAILABLE or the server's refusal when it is not there at the start.
absl::StatusOr<std::unique_ptr<StateStore>> OpenRedisStore(const StateStore::Options& options,
                                                           const RedisClient::Options& redis,
                                                           const std::string& prefix,
                                                           StateStore::Clock clock,
                                                           StateStore::Report report);

}  // namespace osdn

#endif  // OSDN_ENGINE_STATE_STORE_REDIS_H_
