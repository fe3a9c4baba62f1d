# Prints figures; built with the tests, run by hand.
add_executable(tokenizer_bench ${CMAKE_CURRENT_LIST_DIR}/tokenizer_bench.c)
target_link_libraries(tokenizer_bench PRIVATE moe_flags tokenizer common)
set_target_properties(tokenizer_bench PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
