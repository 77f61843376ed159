# cmake -DPAGE=index.html -DOUTPUT=data.cc -P embed.cmake: the file as a C++ array.
cmake_minimum_required(VERSION 3.25)
file(READ "${PAGE}" bytes HEX)
string(LENGTH "${bytes}" digits)
math(EXPR size "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT "#include <cstddef>
namespace osdn {
extern const size_t kChatPageBytes;
extern const unsigned char kChatPageData[];
const size_t kChatPageBytes = @size@;
const unsigned char kChatPageData[] = {@bytes@};
}  // namespace osdn
")
