// Generations read by one thread that may wait: the HTTP side of server/generation_call.h.
#ifndef OSDN_SERVER_HTTP_GENERATION_READER_H_
#define OSDN_SERVER_HTTP_GENERATION_READER_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "osdn/v1/inference.pb.h"
#include "server/generation_call.h"

namespace osdn {

struct Generation {
  CallKind kind;
  std::shared_ptr<const v1::GenerateRequest> request;
};

// Runs generations together and gives out their frames as they come, one at a time. What is not
// taken stalls its own generation only. Next() is for one thread, Cancel() for any.
class GenerationReader {
 public:
  struct Item {
    size_t generation = 0;
    v1::GenerateStreamResponse frame;
  };

  GenerationReader(const CallEnvironment& environment, const std::vector<Generation>& generations);
  // Cancels what still runs and waits until it has ended: within a step.
  ~GenerationReader();

  GenerationReader(const GenerationReader&) = delete;
  GenerationReader& operator=(const GenerationReader&) = delete;

  // The next frame, or nullopt when all generations have ended well. An error ends all of them: the
  // first one's, CANCELLED after Cancel().
  absl::StatusOr<std::optional<Item>> Next();
  void Cancel();

 private:
  class Call;
  struct Shared;

  void Release();

  const std::shared_ptr<Shared> shared_;  // also of calls that are about to end
  std::vector<std::unique_ptr<Call>> calls_;
  std::optional<size_t> taken_;  // whose frame was given out last
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_GENERATION_READER_H_
