# Prints figures; built with the tests, run by hand.
add_executable(eplb_bench ${CMAKE_CURRENT_LIST_DIR}/eplb_bench.c)
target_link_libraries(eplb_bench PRIVATE moe_flags router eplb exchange common)
set_target_properties(eplb_bench PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
