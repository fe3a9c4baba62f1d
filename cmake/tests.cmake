# moe_test(NAME SOURCES... LINK libs...): one Criterion program, registered with CTest.
#
# Criterion exits 0 when a program has no test at all (its summary then follows its first line at once; tests that
# were skipped stand between, but are not counted as tested), and when a leak or an undefined operation was only
# printed: FAIL_REGULAR_EXPRESSION turns all of these into failures.  The first line needs a verbosity of 1.
# Criterion itself leaks when it runs tests side by side, hence CRITERION_JOBS; CTest runs programs side by side.
#
# Under ThreadSanitizer, where Criterion's process-per-test start-up does not work, tests/support/inproc_main.c runs
# the same sources.
function(moe_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINK" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  if(CONCLAVE_SANITIZE MATCHES "thread")
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/support/inproc_main.c)
  endif()
  target_link_libraries(${name} PRIVATE moe_flags PkgConfig::CRITERION ${ARG_LINK})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(
    ${name}
    PROPERTIES
      TIMEOUT ${ARG_TIMEOUT}
      FAIL_REGULAR_EXPRESSION
      "Criterion v[0-9.]+\n.====. Synthesis: Tested: 0 ;LeakSanitizer;runtime error:;AddressSanitizer;ThreadSanitizer"
      ENVIRONMENT
      "CONCLAVE_TEST_ROOT=${PROJECT_SOURCE_DIR};CONCLAVE_BIN_DIR=${CMAKE_BINARY_DIR}/bin;CRITERION_JOBS=1;CRITERION_VERBOSITY_LEVEL=1")
endfunction()

# moe_fuzz(NAME SOURCES... LINK libs... CORPUS dir): a fuzz target.  Built with Clang it is a libFuzzer program;
# otherwise tests/fuzz/driver.c replays the corpus and mutates it for a few seconds.
function(moe_fuzz name)
  cmake_parse_arguments(ARG "" "CORPUS" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} ${PROJECT_SOURCE_DIR}/tests/fuzz/driver.c)
  target_link_libraries(${name} PRIVATE moe_flags ${ARG_LINK})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} ${ARG_CORPUS})
  set_tests_properties(
    ${name} PROPERTIES TIMEOUT 300 FAIL_REGULAR_EXPRESSION
                                   "LeakSanitizer;runtime error:;AddressSanitizer")
endfunction()
