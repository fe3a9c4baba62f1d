/* packed_cache: what the format promises, byte by byte; that slots come back as they were written,
 * whoever wrote them; and that no file, however bad, gives other bytes than those. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/log.h"
#include "model/packed_cache.h"
#include "tests/model/support.h"

#define LAYERS 3u
#define EXPERTS 2u
#define SLOTS (LAYERS * EXPERTS)
#define SLOT_BYTES (PACKED_BLOCK_BYTES + 4097u) /* two blocks, the second one short */

static char dir[PATH_BYTES];
static pool *threads;

static const packed_key key = {.role = PACKED_EXPERTS,
                               .dtype = DTYPE_INT8,
                               .fingerprint = 0x1122334455667788,
                               .stamp = 0x99aabbccddeeff00,
                               .num_layers = LAYERS,
                               .num_experts = EXPERTS,
                               .width_begin = 64,
                               .width_end = 192,
                               .slot_count = SLOTS,
                               .slot_bytes = SLOT_BYTES};

static void
setup(void)
{
    signal(SIGXFSZ, SIG_IGN); /* as every program of ours does */
    temp_create(dir);
    cr_assert_eq(pool_create(&threads, 3), MOE_OK);
}

static void
teardown(void)
{
    pool_free(threads);
    threads = NULL;
    temp_remove(dir);
}

TestSuite(packed_cache, .init = setup, .fini = teardown, .timeout = 60);

static void
fill_pattern(uint8_t *bytes, size_t n, uint32_t slot)
{
    for (size_t i = 0; i < n; i++) {
        bytes[i] = (uint8_t)(hash_mix(i / 8 + slot * 1000003ull) >> i % 8 * 8);
    }
}

/* The slots' contents, and as many bytes to read into. */
typedef struct memory {
    uint8_t *want, *got;
    packed_slot out[SLOTS], in[SLOTS];
    bool done[SLOTS];
} memory;

static memory
make_memory(void)
{
    memory m = {.want = malloc(SLOTS * SLOT_BYTES), .got = malloc(SLOTS * SLOT_BYTES)};
    cr_assert(m.want != NULL && m.got != NULL);
    memset(m.got, 0xee, SLOTS * SLOT_BYTES);
    for (uint32_t i = 0; i < SLOTS; i++) {
        fill_pattern(m.want + (size_t)i * SLOT_BYTES, SLOT_BYTES, i);
        m.out[i] = (packed_slot){i, m.want + (size_t)i * SLOT_BYTES};
        m.in[i] = (packed_slot){i, m.got + (size_t)i * SLOT_BYTES};
    }
    return m;
}

static void
free_memory(memory *m)
{
    free(m->want);
    free(m->got);
}

static packed_cache *
open_key(const packed_key *k)
{
    packed_cache *c;
    errbuf eb = {{0}};
    cr_assert_eq(packed_cache_open(&c, dir, k, &eb), MOE_OK, "%s", eb.text);
    return c;
}

static void
write_slots(packed_cache *c, const memory *m, uint32_t begin, uint32_t end)
{
    errbuf eb = {{0}};
    for (uint32_t i = begin; i < end; i++) {
        cr_assert_eq(packed_cache_write(c, i, m->out[i].bytes, NULL, &eb), MOE_OK, "%s", eb.text);
    }
}

/* Writes all slots and closes; the file's path goes to path [PATH_BYTES]. */
static void
write_whole(const memory *m, char *path)
{
    packed_cache *c = open_key(&key);
    write_slots(c, m, 0, SLOTS);
    snprintf(path, PATH_BYTES, "%s", packed_cache_path(c));
    packed_cache_close(c);
}

static const char *
name_of(const char *path)
{
    return strrchr(path, '/') + 1;
}

/* Reads everything; every slot that is said to be there must be right.  Returns a mask of them. */
static unsigned
read_all(packed_cache *c, memory *m)
{
    errbuf eb = {{0}};
    unsigned mask = 0;
    cr_assert_eq(packed_cache_read(c, m->in, SLOTS, m->done, threads, NULL, &eb), MOE_OK, "%s",
                 eb.text);
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (!m->done[i]) continue;
        cr_expect_arr_eq(m->in[i].bytes, m->out[i].bytes, SLOT_BYTES, "slot %u", i);
        mask |= 1u << i;
    }
    return mask;
}

static unsigned
open_and_read(memory *m)
{
    packed_cache *c = open_key(&key);
    const unsigned mask = read_all(c, m);
    packed_cache_close(c);
    return mask;
}

#define ALL ((1u << SLOTS) - 1)

Test(packed_cache, slots_of_any_size_come_back_as_they_were_written)
{
    static const uint32_t sizes[] = {1,
                                     4095,
                                     4096,
                                     PACKED_BLOCK_BYTES - 1,
                                     PACKED_BLOCK_BYTES,
                                     PACKED_BLOCK_BYTES + 1,
                                     17 * PACKED_BLOCK_BYTES + 3};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        const uint32_t n = sizes[s];
        const packed_key k = {PACKED_ROUTER, DTYPE_BF16, 1, s, 7, 2, 0, 0, 3, n};
        uint8_t *want = malloc(n), *got = malloc(n);
        errbuf eb = {{0}};
        bool done[2];
        packed_cache *c = open_key(&k);
        fill_pattern(want, n, n);
        cr_assert_eq(packed_cache_write(c, 1, want, NULL, &eb), MOE_OK, "%s", eb.text);
        packed_cache_close(c);

        c = open_key(&k);
        const packed_slot in[] = {{1, got}, {2, want}};
        cr_assert_eq(packed_cache_read(c, in, 2, done, threads, NULL, &eb), MOE_OK);
        cr_expect(done[0] && !done[1]);
        cr_expect_arr_eq(got, want, n, "%u bytes", n);
        cr_expect(!packed_cache_holds(c, 0) && packed_cache_holds(c, 1));
        packed_cache_close(c);
        free(want);
        free(got);
    }
}

static uint64_t
get(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes; i-- > 0;) {
        v = v << 8 | p[i];
    }
    return v;
}

Test(packed_cache, a_file_is_laid_out_as_its_description_says)
{
    memory m = make_memory();
    char path[PATH_BYTES];
    write_whole(&m, path);
    struct stat st;
    const int fd = open(path, O_RDONLY);
    cr_assert(fd >= 0 && fstat(fd, &st) == 0);
    uint8_t *b = malloc((size_t)st.st_size);
    cr_assert_eq(read(fd, b, (size_t)st.st_size), st.st_size);
    close(fd);

    cr_expect_eq(st.st_mode & 0777, 0600);
    cr_expect_arr_eq(b, "CNCLPACK", 8);
    static const struct {
        int at, size;
        uint64_t value;
    } fields[] = {
        {8, 4, PACKED_VERSION},
        {12, 4, PACKED_PACK_VERSION},
        {16, 4, 1},
        {20, 4, 2},
        {24, 8, 0x1122334455667788},
        {32, 8, 0x99aabbccddeeff00},
        {40, 4, 3},
        {44, 4, 2},
        {48, 4, 64},
        {52, 4, 192},
        {56, 4, 6},
        {60, 4, 262144},
        {64, 8, 266241},
        {72, 8, 270336},
        {80, 8, 4096},
        {88, 8, 8192},
        {96, 8, 8192 + 6 * 270336},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        cr_expect_eq(get(b + fields[i].at, fields[i].size), fields[i].value, "at %d", fields[i].at);
    }
    cr_expect_eq(get(b + 104, 8), hash_bytes(0, b, 104));
    cr_expect_eq(st.st_size, 8192 + 6 * 270336);
    for (uint32_t i = 0; i < SLOTS; i++) {
        cr_expect_arr_eq(b + 8192 + i * 270336, m.out[i].bytes, SLOT_BYTES);
        cr_expect_eq(get(b + 4096 + i * 16, 8), packed_slot_hash(m.out[i].bytes, SLOT_BYTES));
    }
    free(b);
    free_memory(&m);
}

Test(packed_cache, two_writers_fill_one_file_between_them)
{
    memory m = make_memory();
    packed_cache *a = open_key(&key), *b = open_key(&key);
    cr_expect_str_eq(packed_cache_path(a), packed_cache_path(b));
    write_slots(a, &m, 0, 4);
    cr_expect_eq(read_all(b, &m), 0xf, "what another writes is seen at once");
    write_slots(b, &m, 2, SLOTS); /* some of them again */
    packed_cache_close(a);
    packed_cache_close(b);
    cr_expect_eq(open_and_read(&m), ALL);
    free_memory(&m);
}

static pid_t
fork_filler(const memory *m)
{
    const pid_t pid = fork();
    if (pid != 0) return pid;
    packed_cache *c;
    errbuf eb;
    if (packed_cache_open(&c, dir, &key, &eb)) _exit(1);
    for (uint32_t i = 0; i < SLOTS; i++) {
        const moe_err err = packed_cache_write(c, i, m->out[i].bytes, NULL, &eb);
        if (err != MOE_OK && err != MOE_EBUSY) _exit(2);
    }
    _exit(0);
}

Test(packed_cache, processes_that_start_at_once_make_and_fill_one_file)
{
    memory m = make_memory();
    for (int round = 0; round < 10; round++) {
        pid_t pids[3];
        int status;
        char path[PATH_BYTES];
        for (int i = 0; i < 3; i++) {
            pids[i] = fork_filler(&m);
            cr_assert(pids[i] > 0);
        }
        for (int i = 0; i < 3; i++) {
            cr_assert_eq(waitpid(pids[i], &status, 0), pids[i]);
            cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x", status);
        }
        packed_cache *c = open_key(&key);
        cr_expect_eq(read_all(c, &m), ALL);
        snprintf(path, sizeof path, "%s", packed_cache_path(c));
        packed_cache_close(c);
        cr_assert_eq(unlink(path), 0);
    }
    free_memory(&m);
}

Test(packed_cache, a_writer_that_dies_leaves_a_slot_that_is_not_there)
{
    memory m = make_memory();
    packed_cache *c = open_key(&key);
    int ready[2];
    cr_assert_eq(pipe(ready), 0);
    const pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) { /* has the lock and half of the bytes, and is killed */
        const int fd = open(packed_cache_path(c), O_RDWR);
        struct flock lock = {.l_type = F_WRLCK, .l_start = 8192, .l_len = 1};
        if (fd < 0 || fcntl(fd, F_OFD_SETLK, &lock) != 0) _exit(1);
        if (pwrite(fd, m.want, SLOT_BYTES / 2, 8192) != SLOT_BYTES / 2) _exit(1);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;)
            pause();
    }
    char x;
    errbuf eb;
    cr_assert_eq(read(ready[0], &x, 1), 1);
    cr_expect_eq(packed_cache_write(c, 0, m.out[0].bytes, NULL, &eb), MOE_EBUSY);
    cr_assert_eq(kill(pid, SIGKILL), 0);
    cr_assert_eq(waitpid(pid, NULL, 0), pid);

    cr_expect_eq(read_all(c, &m), 0);
    write_slots(c, &m, 0, 1);
    cr_expect_eq(read_all(c, &m), 1);
    packed_cache_close(c);
    close(ready[0]);
    close(ready[1]);
    free_memory(&m);
}

Test(packed_cache, a_damaged_slot_is_noticed_forgotten_and_written_again)
{
    memory m = make_memory();
    char path[PATH_BYTES];
    write_whole(&m, path);
    /* In the first block, in the last byte of the second, in the hash, in the seal. */
    static const long at[] = {8192 + 5, 8192 + 270336 + SLOT_BYTES - 1, 4096 + 2 * 16,
                              4096 + 3 * 16 + 8};
    for (size_t i = 0; i < 4; i++) {
        temp_flip(dir, name_of(path), at[i]);
    }
    temp_flip(dir, name_of(path), 8192 + 4 * 270336 + SLOT_BYTES); /* padding: nobody's */
    packed_cache *c = open_key(&key);
    cr_expect_eq(read_all(c, &m), 0x30);
    for (uint32_t i = 0; i < SLOTS; i++) {
        cr_expect_eq(packed_cache_holds(c, i), i >= 4, "slot %u", i);
    }
    write_slots(c, &m, 0, SLOTS);
    packed_cache_close(c);
    cr_expect_eq(open_and_read(&m), ALL);
    free_memory(&m);
}

Test(packed_cache, a_bad_file_is_replaced_and_then_works)
{
    memory m = make_memory();
    char path[PATH_BYTES];
    write_whole(&m, path);
    /* Every byte of the header's fields. */
    for (long at = 0; at < PACKED_HEADER_FIELDS_BYTES; at++) {
        temp_flip(dir, name_of(path), at);
        cr_expect_eq(open_and_read(&m), 0, "byte %ld of the header changed", at);
        packed_cache *c = open_key(&key);
        write_slots(c, &m, 1, 2);
        cr_expect_eq(read_all(c, &m), 2);
        packed_cache_close(c);
    }
    /* Cut at each part of the file, and too long. */
    static const long sizes[] = {0, 7, 111, 112, 4096, 8191, 8192 + 270336, 8192 + 6 * 270336 + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        cr_assert_eq(truncate(path, sizes[i]), 0);
        cr_expect_eq(open_and_read(&m), 0, "cut to %ld", sizes[i]);
        packed_cache *c = open_key(&key);
        write_slots(c, &m, 0, SLOTS);
        packed_cache_close(c);
        cr_expect_eq(open_and_read(&m), ALL);
    }
    free_memory(&m);
}

Test(packed_cache, what_is_no_file_is_not_followed_and_not_waited_for)
{
    memory m = make_memory();
    char path[PATH_BYTES], other[PATH_BYTES + 16];
    write_whole(&m, path);
    snprintf(other, sizeof other, "%s.other", path);
    cr_assert_eq(rename(path, other), 0);
    cr_assert_eq(symlink(other, path), 0);
    cr_expect_eq(open_and_read(&m), 0, "a link was followed");
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_expect_eq(open_and_read(&m), 0);
    cr_assert_eq(unlink(path), 0);

    /* A folder can't be replaced by a file. */
    packed_cache *c;
    errbuf eb = {{0}};
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_expect_neq(packed_cache_open(&c, dir, &key, &eb), MOE_OK);
    cr_expect_null(c);
    cr_expect_not_null(strstr(eb.text, path), "%s", eb.text);
    cr_assert_eq(rmdir(path), 0);
    free_memory(&m);
}

Test(packed_cache, a_file_cut_off_while_it_is_open_is_a_damaged_slot)
{
    memory m = make_memory();
    char path[PATH_BYTES];
    write_whole(&m, path);
    packed_cache *c = open_key(&key);
    cr_assert_eq(truncate(path, 8192 + 2 * 270336 + 100), 0);
    cr_expect_eq(read_all(c, &m), 3);
    cr_assert_eq(truncate(path, 4096), 0);
    cr_expect_eq(read_all(c, &m), 0);
    packed_cache_close(c);
    free_memory(&m);
}

Test(packed_cache, other_weights_have_another_file)
{
    memory m = make_memory();
    char path[PATH_BYTES];
    write_whole(&m, path);
    packed_key others[] = {key, key, key, key, key, key};
    others[0].role = PACKED_ROUTER;
    others[1].dtype = DTYPE_BF16;
    others[2].fingerprint++;
    others[3].stamp++;
    others[4].width_begin = 0;
    others[5].width_end = 200;
    for (size_t i = 0; i < 6; i++) {
        packed_cache *c = open_key(&others[i]);
        cr_expect_str_neq(packed_cache_path(c), path);
        cr_expect_eq(read_all(c, &m), 0);
        packed_cache_close(c);
    }
    cr_expect_eq(open_and_read(&m), ALL);
    free_memory(&m);
}

static void
expect_refused(packed_key k, moe_err want)
{
    packed_cache *c;
    errbuf eb = {{0}};
    cr_expect_eq(packed_cache_open(&c, dir, &k, &eb), want, "%s", eb.text);
    cr_expect_null(c);
    cr_expect_neq(eb.text[0], '\0');
}

Test(packed_cache, a_key_outside_the_limits_is_refused)
{
    packed_key k = key;
    k.slot_bytes = 0;
    expect_refused(k, MOE_ERANGE);
    k.slot_bytes = PACKED_SLOT_BYTES_MAX + 1;
    expect_refused(k, MOE_ERANGE);
    k = key;
    k.slot_count++;
    expect_refused(k, MOE_ERANGE);
    k.role = PACKED_ROUTER;
    k.slot_count = PACKED_SLOT_COUNT_MAX + 1;
    expect_refused(k, MOE_ERANGE);
    k.slot_count = 0;
    expect_refused(k, MOE_ERANGE);
    k = key;
    k.dtype = DTYPE_COUNT;
    expect_refused(k, MOE_ERANGE);
    k = key;
    k.width_begin = k.width_end + 1;
    expect_refused(k, MOE_ERANGE);
    k = key;
    k.role = (packed_role)3;
    expect_refused(k, MOE_ERANGE);
}

Test(packed_cache, a_header_of_other_weights_or_another_version_says_what_differs)
{
    packed_header h, got;
    uint8_t b[PACKED_HEADER_FIELDS_BYTES];
    errbuf eb = {{0}};
    packed_key other = key;
    other.dtype = DTYPE_BF16;
    cr_assert_eq(packed_header_init(&h, &key, &eb), MOE_OK);
    packed_header_encode(&h, b);
    cr_assert_eq(packed_header_decode(&got, b, sizeof b, h.file_bytes, &eb), MOE_OK, "%s", eb.text);
    cr_expect(got.slot_stride == h.slot_stride && got.data_offset == h.data_offset &&
              got.table_offset == h.table_offset && got.header_hash == h.header_hash);
    cr_expect_eq(packed_key_compare(&got.key, &key, &eb), MOE_OK);
    cr_expect_eq(packed_key_compare(&got.key, &other, &eb), MOE_EMISMATCH);
    cr_expect_str_eq(eb.text, "of other weights: its dtype is 0x2, wanted 0x1");
    cr_expect_eq(packed_header_decode(&got, b, sizeof b, h.file_bytes - 1, &eb), MOE_EINVAL);
    cr_expect_eq(packed_header_decode(&got, b, sizeof b - 1, h.file_bytes, &eb), MOE_EINVAL);
    b[8]++;
    cr_expect_eq(packed_header_decode(&got, b, sizeof b, h.file_bytes, &eb), MOE_EMISMATCH);
    cr_expect_not_null(strstr(eb.text, "version 2."), "%s", eb.text);
}

Test(packed_cache, a_folder_that_can_not_be_written_is_read_alone)
{
    if (geteuid() != 0) cr_skip("needs root, to become a user who may not write");
    memory m = make_memory();
    char path[PATH_BYTES];
    packed_cache *c;
    errbuf eb = {{0}};
    packed_key other = key;
    other.stamp++;
    write_whole(&m, path);
    cr_assert(chmod(dir, 0555) == 0 && chmod(path, 0444) == 0);
    cr_assert_eq(seteuid(65534), 0);
    cr_expect_eq(packed_cache_open(&c, dir, &key, &eb), MOE_OK, "%s", eb.text);
    cr_expect_not(packed_cache_can_write(c));
    cr_expect_eq(read_all(c, &m), ALL);
    cr_expect_eq(packed_cache_write(c, 0, m.want, NULL, &eb), MOE_EPERM);
    packed_cache_close(c);
    cr_expect_eq(packed_cache_open(&c, dir, &other, &eb), MOE_EIO);
    cr_expect_not_null(strstr(eb.text, "Permission denied"), "%s", eb.text);

    /* A bad one can't be replaced either: the error is what is wrong with it. */
    cr_assert_eq(seteuid(0), 0);
    temp_flip(dir, name_of(path), 0);
    cr_assert_eq(seteuid(65534), 0);
    cr_expect_eq(packed_cache_open(&c, dir, &key, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "not a packed-weights file"), "%s", eb.text);
    cr_assert_eq(seteuid(0), 0);
    cr_assert_eq(chmod(dir, 0700), 0);
    free_memory(&m);
}

Test(packed_cache, a_folder_that_does_not_exist_is_made_or_reported)
{
    char sub[PATH_BYTES], deep[PATH_BYTES];
    packed_cache *c;
    errbuf eb = {{0}};
    snprintf(sub, sizeof sub, "%.400s/sub", dir);
    snprintf(deep, sizeof deep, "%.400s/no/such", dir);
    cr_assert_eq(packed_cache_open(&c, sub, &key, &eb), MOE_OK, "%s", eb.text);
    struct stat st;
    cr_expect(stat(sub, &st) == 0 && (st.st_mode & 0777) == 0700);
    cr_assert_eq(unlink(packed_cache_path(c)), 0);
    packed_cache_close(c);
    cr_assert_eq(rmdir(sub), 0);
    cr_expect_eq(packed_cache_open(&c, deep, &key, &eb), MOE_ENOTFOUND);
    cr_expect_not_null(strstr(eb.text, "no/such/"), "%s", eb.text);
}

Test(packed_cache, a_full_disk_is_an_error_and_what_was_written_stays)
{
    memory m = make_memory();
    packed_cache *c = open_key(&key);
    errbuf eb = {{0}};
    struct rlimit old, small;
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){8192 + 2 * 270336 + 1000, old.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    write_slots(c, &m, 0, 2);
    cr_expect_eq(packed_cache_write(c, 2, m.out[2].bytes, NULL, &eb), MOE_EIO);
    cr_expect_not_null(strstr(eb.text, "File too large"), "%s", eb.text);
    cr_expect_eq(read_all(c, &m), 3);

    /* Nor can a file be made. */
    packed_cache *none;
    packed_key other = key;
    other.stamp++;
    cr_expect_eq(packed_cache_open(&none, dir, &other, &eb), MOE_EIO);
    cr_expect_not_null(strstr(eb.text, "setting its size"), "%s", eb.text);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    write_slots(c, &m, 2, SLOTS);
    cr_expect_eq(read_all(c, &m), ALL);
    packed_cache_close(c);
    free_memory(&m);
}

Test(packed_cache, a_fill_writes_what_is_missing_and_survives_a_full_disk)
{
    memory m = make_memory();
    packed_fill *f;
    errbuf eb = {{0}};
    packed_cache *c = open_key(&key);
    write_slots(c, &m, 1, 2);
    struct rlimit old, small;
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){8192 + 3 * 270336, old.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    signal(SIGXFSZ, SIG_DFL); /* the thread does not need it to be ignored */
    cr_assert_eq(packed_fill_start(&f, c, m.out, SLOTS, &eb), MOE_OK, "%s", eb.text);
    packed_fill_wait(f);
    packed_fill_stop(f);
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    cr_expect_eq(open_and_read(&m), 7);

    cr_assert_eq(packed_fill_start(&f, open_key(&key), m.out, SLOTS, &eb), MOE_OK, "%s", eb.text);
    packed_fill_wait(f);
    packed_fill_stop(f);
    cr_expect_eq(open_and_read(&m), ALL);

    /* Stopped at once: whatever is there is right. */
    cr_assert_eq(packed_fill_start(&f, open_key(&key), m.out, SLOTS, &eb), MOE_OK, "%s", eb.text);
    packed_fill_stop(f);
    packed_fill_stop(NULL);
    cr_expect_eq(open_and_read(&m), ALL);
    free_memory(&m);
}

Test(packed_cache, a_cancelled_read_or_write_says_so)
{
    memory m = make_memory();
    char path[PATH_BYTES];
    errbuf eb = {{0}};
    const _Atomic bool cancel = true;
    write_whole(&m, path);
    packed_cache *c = open_key(&key);
    cr_expect_eq(packed_cache_read(c, m.in, SLOTS, m.done, threads, &cancel, &eb), MOE_ECLOSED);
    for (uint32_t i = 0; i < SLOTS; i++) {
        cr_expect_not(m.done[i]);
        cr_expect(packed_cache_holds(c, i), "a slot that was not read was forgotten");
    }
    packed_cache_close(c);
    cr_assert_eq(unlink(path), 0);
    c = open_key(&key);
    cr_expect_eq(packed_cache_write(c, 0, m.want, &cancel, &eb), MOE_ECLOSED);
    cr_expect_not(packed_cache_holds(c, 0));
    packed_cache_close(c);
    free_memory(&m);
}
