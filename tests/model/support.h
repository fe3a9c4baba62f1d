/* support: temporary folders and hand-made safetensors files for the tests of model/.
 *
 * Failures end the test.  Threads: one. */
#ifndef MOE_TESTS_MODEL_SUPPORT_H
#define MOE_TESTS_MODEL_SUPPORT_H

#include <stddef.h>
#include <stdint.h>

#define PATH_BYTES 512

/* A fresh folder; its path is written to dir [PATH_BYTES]. */
void temp_create(char *dir);
/* Removes the folder and the files in it. */
void temp_remove(const char *dir);
void temp_write(const char *dir, const char *file, const void *bytes, size_t len);
void temp_copy(const char *dir, const char *from_dir, const char *file);
/* Copies every file of from_dir. */
void temp_copy_all(const char *dir, const char *from_dir);
/* Flips one bit of the byte at offset; from the end when negative. */
void temp_flip(const char *dir, const char *file, long offset);

/* Length, header and data_bytes counting bytes; free() the result. */
uint8_t *st_file(const char *header, size_t data_bytes, size_t *len);

/* One tensor of a file to be written. */
typedef struct st_tensor {
    const char *name;
    const char *dtype; /* as in the file */
    uint32_t rank;
    uint64_t shape[4];
    const void *data; /* NULL: counting bytes */
} st_tensor;

/* Write a well-formed file with these tensors, in this order. */
void st_write(const char *dir, const char *file, const st_tensor *tensors, size_t count);

/* A whole model of one layer: H 8, I 12, V 16, 2 heads, 1 kv head of 4, 2 experts. */
#define TINY_TENSORS 16
extern const char tiny_config[];
extern const st_tensor tiny_tensors[TINY_TENSORS];

#endif
