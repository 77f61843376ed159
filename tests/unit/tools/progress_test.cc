#include "tools/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace osdn::tools {
namespace {

using testing::HasSubstr;

// What `draw` prints.
template <typename Draw>
std::string Captured(int64_t total, bool terminal, Draw draw) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = ::open_memstream(&text, &size);
  {
    Progress progress("work", total, out, terminal);
    draw(progress);
  }
  std::fclose(out);
  std::string captured(text, size);
  std::free(text);
  return captured;
}

TEST(ProgressTest, LinesAtQuartersElsewhere) {
  const std::string text = Captured(1000, false, [](Progress& progress) {
    for (int i = 0; i <= 1000; ++i) progress.Update(i, "x");
  });
  EXPECT_EQ(text, "work: 25%\nwork: 50%\nwork: 75%\nwork: 100%\n");
}

TEST(ProgressTest, BarOnATerminal) {
  const std::string text = Captured(2, true, [](Progress& progress) {
    progress.Update(1, "model.layers.0.attn.q_proj.weight");
    progress.Update(2, std::string(100, 'n'));
  });
  EXPECT_THAT(text, HasSubstr("\rwork [###############---------------]  50% model.layers.0"));
  EXPECT_THAT(text, HasSubstr("[##############################] 100% nnn"));
  EXPECT_EQ(text.back(), '\n');
}

TEST(ProgressTest, RateAndTimeLeft) {
  EXPECT_EQ(Progress::RateText(100, 1000, 0.5), "");
  EXPECT_EQ(Progress::RateText(0, 1000, 5), "");
  EXPECT_EQ(Progress::RateText(100, 1000, 2), "50/s, 0:18 left");
  EXPECT_EQ(Progress::RateText(30'000, 1'000'000, 10), "3k/s, 5:23 left");
  EXPECT_EQ(Progress::RateText(2'000'000'000, 100'000'000'000, 100), "20M/s, 1:21:40 left");
}

TEST(ProgressTest, NothingToDoIsDone) {
  EXPECT_EQ(Captured(0, false, [](Progress& progress) { progress.Update(0, ""); }), "work: 100%\n");
}

}  // namespace
}  // namespace osdn::tools
