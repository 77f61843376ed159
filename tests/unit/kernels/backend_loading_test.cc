// CreateBackend: names, the CUDA module's loader with stand-in modules, and Buffer.
#include <dlfcn.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/backend_module.h"

namespace osdn::kernels {
namespace {

namespace fs = std::filesystem;

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::StatusOr<BackendChoice> Create(const std::string& name, const std::string& module_dir = "") {
  return CreateBackend({.name = name, .threads = 1, .cpu_isa = "auto", .module_dir = module_dir});
}

// Folder of a stand-in module (fake_module.cc).
std::string FakeModuleDir(const std::string& kind) {
  return std::string(OSDN_FAKE_MODULES_DIR) + "/" + kind;
}

std::string Message(const absl::StatusOr<BackendChoice>& choice) {
  return std::string(choice.status().message());
}

TEST(CreateBackendTest, UnknownNameListsTheKnownOnes) {
  const auto choice = Create("tpu");
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(choice), AllOf(HasSubstr("tpu"), HasSubstr("auto"), HasSubstr("cpu"),
                                     HasSubstr("cuda"), HasSubstr("reference")));
}

TEST(CreateBackendTest, RefusesNegativeThreads) {
  const auto choice =
      CreateBackend({.name = "cpu", .threads = -3, .cpu_isa = "auto", .module_dir = ""});
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(choice), HasSubstr("-3"));
}

TEST(CreateBackendTest, ReferenceAndCpuByName) {
  for (const std::string name : {"reference", "cpu"}) {
    const auto choice = Create(name);
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_EQ(choice->backend->name(), name);
    EXPECT_THAT(choice->backend->Describe(), HasSubstr(name));
    EXPECT_THAT(choice->reason, HasSubstr("configured"));
  }
}

TEST(CreateBackendTest, CudaWithoutModuleNamesThePathAndTheRemedy) {
  const auto choice = Create("cuda", "/nowhere");
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), AllOf(HasSubstr("/nowhere/libosdn_cuda.so: not found"),
                                     HasSubstr("OSDN_CUDA=ON"), HasSubstr("module_dir")));
}

TEST(CreateBackendTest, CudaLooksBesideTheExecutableAndInLib) {
  const fs::path beside = fs::read_symlink("/proc/self/exe").parent_path();
  const fs::path lib = beside.parent_path() / "lib";
  if (fs::exists(beside / kCudaModuleFile) || fs::exists(lib / kCudaModuleFile)) {
    GTEST_SKIP() << "this build has the real module";
  }
  const auto choice = Create("cuda");
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), AllOf(HasSubstr((beside / kCudaModuleFile).string()),
                                     HasSubstr((lib / kCudaModuleFile).string())));
}

TEST(CreateBackendTest, AutoFallsBackToCpuAndSaysWhy) {
  const auto choice = Create("auto", "/nowhere");
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->backend->name(), "cpu");
  EXPECT_THAT(choice->reason, AllOf(HasSubstr("cpu, chosen by auto"),
                                    HasSubstr("/nowhere/libosdn_cuda.so: not found")));
}

TEST(CreateBackendTest, AutoFallsBackWhenTheModuleFindsNoDevice) {
  const auto choice = Create("auto", FakeModuleDir("no_device"));
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->backend->name(), "cpu");
  EXPECT_THAT(choice->reason, HasSubstr("no CUDA device found"));
}

TEST(BackendModuleTest, WorksForAsLongAsTheBackendLives) {
  const std::string path = FakeModuleDir("good") + "/" + kCudaModuleFile;
  for (const std::string name : {"cuda", "auto"}) {
    auto choice = Create(name, FakeModuleDir("good"));
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_THAT(choice->reason, AllOf(HasSubstr("cuda"), HasSubstr(path)));
    void* mapped = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    ASSERT_NE(mapped, nullptr) << dlerror();
    dlclose(mapped);

    Backend& backend = *choice->backend;
    EXPECT_EQ(backend.name(), "reference");  // what the stand-in wraps
    absl::StatusOr<Buffer> buffer = backend.Allocate(4 * sizeof(float));
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    ASSERT_TRUE(backend.Fill(buffer->floats(), 2.5F, 4).ok());
    std::vector<float> values(4);
    ASSERT_TRUE(backend.CopyToHost(values.data(), buffer->data(), buffer->bytes()).ok());
    EXPECT_EQ(values, std::vector<float>(4, 2.5F));
    // An error made in the module is still readable when its backend is gone.
    const absl::Status error = backend.PrepareLinear({nullptr, DType::kF32, {7}}).status();
    *buffer = Buffer();
    choice->backend.reset();
    EXPECT_THAT(std::string(error.message()), HasSubstr("[7]"));
  }
}

TEST(BackendModuleTest, SeveralBackendsOfOneModule) {
  auto first = Create("cuda", FakeModuleDir("good"));
  auto second = Create("cuda", FakeModuleDir("good"));
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->backend, second->backend);
  first->backend.reset();
  EXPECT_TRUE(second->backend->Synchronize().ok());
}

TEST(BackendModuleTest, WrongAbiVersionIsRefusedWithBothVersions) {
  const auto choice = Create("cuda", FakeModuleDir("wrong_abi"));
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), AllOf(HasSubstr("wrong_abi/libosdn_cuda.so"),
                                     HasSubstr("ABI " + std::to_string(kBackendAbiVersion + 1000)),
                                     HasSubstr("wants " + std::to_string(kBackendAbiVersion))));
}

TEST(BackendModuleTest, NoDeviceGivesTheModulesCauseAndARemedy) {
  const auto choice = Create("cuda", FakeModuleDir("no_device"));
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), AllOf(HasSubstr("no CUDA device found"), HasSubstr("driver"),
                                     HasSubstr("choose backend cpu")));
}

TEST(BackendModuleTest, SilentRefusalIsStillAnError) {
  const auto choice = Create("cuda", FakeModuleDir("silent"));
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), HasSubstr("without a cause"));
}

TEST(BackendModuleTest, LibraryWithoutTheEntryPoint) {
  const auto choice = Create("cuda", FakeModuleDir("no_symbol"));
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), HasSubstr(kCreateCudaBackendSymbol));
}

TEST(BackendModuleTest, FileThatIsNoLibrary) {
  const fs::path folder =
      fs::path(::testing::TempDir()) / ("osdn_no_library_" + std::to_string(getpid()));
  fs::create_directories(folder);
  std::ofstream(folder / kCudaModuleFile) << "not an ELF file";
  const auto choice = Create("cuda", folder.string());
  fs::remove_all(folder);
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(choice), HasSubstr("cannot be opened"));
}

// Counts the deletions of the memory it is told about.
struct Deletions {
  std::vector<void*> deleted;
  static void Delete(void* context, void* data) {
    static_cast<Deletions*>(context)->deleted.push_back(data);
  }
};

TEST(BufferTest, FreesItsMemoryOnceWhateverTheMoves) {
  Deletions deletions;
  int memory = 0;
  {
    Buffer a(&memory, sizeof(memory), &Deletions::Delete, &deletions);
    Buffer b(std::move(a));
    Buffer c;
    c = std::move(b);
    Buffer& same = c;
    c = std::move(same);
    EXPECT_EQ(c.data(), &memory);
    EXPECT_EQ(c.bytes(), sizeof(memory));
    EXPECT_EQ(b.data(), nullptr);  // NOLINT(bugprone-use-after-move): moved-from is empty
    EXPECT_EQ(b.bytes(), 0U);
    EXPECT_TRUE(deletions.deleted.empty());
  }
  EXPECT_EQ(deletions.deleted, std::vector<void*>{&memory});
}

TEST(BufferTest, AssignmentFreesWhatItReplaces) {
  Deletions deletions;
  int first = 0;
  int second = 0;
  Buffer buffer(&first, sizeof(first), &Deletions::Delete, &deletions);
  buffer = Buffer(&second, sizeof(second), &Deletions::Delete, &deletions);
  EXPECT_EQ(deletions.deleted, std::vector<void*>{&first});
  EXPECT_EQ(buffer.data(), &second);
}

}  // namespace
}  // namespace osdn::kernels
