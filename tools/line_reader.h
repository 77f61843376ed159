// Lines from standard input: with editing and history on a terminal, plain otherwise.
#ifndef OSDN_TOOLS_LINE_READER_H_
#define OSDN_TOOLS_LINE_READER_H_

#include <optional>
#include <string>

namespace osdn::tools {

// One a process (the editing library keeps its own state), one thread.
class LineReader {
 public:
  LineReader();

  // True when a person types: prompts and decoration make sense.
  bool interactive() const { return interactive_; }
  // The next line without its newline; nullopt at the end of input. `prompt` is shown only on a
  // terminal.
  std::optional<std::string> Read(const std::string& prompt);

 private:
  std::optional<std::string> Edit(const std::string& prompt);

  const bool interactive_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_LINE_READER_H_
