#include "tools/line_reader.h"

#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#ifdef OSDN_HAVE_LIBEDIT
#include <editline/readline.h>
#endif

namespace osdn::tools {

LineReader::LineReader()
    : interactive_(::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1) {
  // Editing must know which bytes make a character.
  if (interactive_) std::setlocale(LC_CTYPE, "");
}

std::optional<std::string> LineReader::Read(const std::string& prompt) {
  if (interactive_) return Edit(prompt);
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

#ifdef OSDN_HAVE_LIBEDIT

std::optional<std::string> LineReader::Edit(const std::string& prompt) {
  char* const typed = ::readline(prompt.c_str());
  if (typed == nullptr) return std::nullopt;
  std::string line(typed);
  std::free(typed);
  if (!line.empty()) ::add_history(line.c_str());
  return line;
}

#else

std::optional<std::string> LineReader::Edit(const std::string& prompt) {
  std::cout << prompt << std::flush;
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

#endif  // OSDN_HAVE_LIBEDIT

}  // namespace osdn::tools
