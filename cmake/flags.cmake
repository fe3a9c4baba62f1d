# moe_flags: what every source of this project is compiled with.  An INTERFACE target, so that
# generated and third-party code stays untouched.
add_library(moe_flags INTERFACE)
target_compile_features(moe_flags INTERFACE c_std_17)
target_include_directories(moe_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(moe_flags INTERFACE _GNU_SOURCE CONCLAVE_VERSION="${PROJECT_VERSION}")
# -ffp-contract=off: a product and a sum fuse only where the source says fmaf, so that every
# build computes the same bits (README, "Determinism").
target_compile_options(
  moe_flags
  INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
            -Wpointer-arith -Wwrite-strings -Wno-format-truncation -fno-common -ffp-contract=off -fno-math-errno)
if(CONCLAVE_WERROR)
  target_compile_options(moe_flags INTERFACE -Werror)
endif()
if(CONCLAVE_SANITIZE)
  target_compile_options(moe_flags INTERFACE -fsanitize=${CONCLAVE_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
  target_link_options(moe_flags INTERFACE -fsanitize=${CONCLAVE_SANITIZE})
endif()

# moe_library(NAME SOURCES... LINK libs...): a static library of this project.
function(moe_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC moe_flags ${ARG_LINK})
endfunction()
