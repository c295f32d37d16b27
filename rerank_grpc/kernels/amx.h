/* Sums of int8 products of whole blocks, by AMX; on CPUs without it a block is a register tile.
 *
 * The sums are integers, and so the same as those of a register tile, which other rows are computed by.
 */
#pragma once

#include "vectors.h"

#ifdef __AMX_INT8__

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK 32 /* rows: two tiles of 16, times two of 16 columns, their sums in four more */
#define STEP 64  /* numbers of a row in a tile */

/* As the instruction ldtilecfg reads it. */
struct tile_shapes {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16]; /* of a tile's row */
    uint8_t rows[16];
};

/* Whether Linux lets this process use tiles: it gives each thread the memory to keep them once it is asked. */
INLINE int tiles_allowed(void) {
    static int known = -1;
    int allowed = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (allowed < 0) {
        enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
        allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
        __atomic_store_n(&known, allowed, __ATOMIC_RELAXED);
    }
    return allowed;
}

/* Shapes the tiles of this thread: all of 16 rows of 64 bytes. Returns whether there are any. */
INLINE int begin_blocks(void) {
    if (!tiles_allowed()) return 0;
    struct tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    /* gcc 12 takes the instruction to read 8 of the 64 bytes, and could leave the rest unwritten. */
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shapes);
    return 1;
}

INLINE void end_blocks(int begun) {
    if (begun) _tile_release();
}

INLINE int takes_block(int begun, int64_t rows, int64_t k) { return begun && rows == BLOCK && k % STEP == 0; }

/* 32 columns of a block. */
INLINE void half_block(const int8_t *x, const uint8_t *w, int64_t k, int32_t *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < k; i += STEP) {
        _tile_loadd(4, x + i, k);
        _tile_loadd(5, x + 16 * k + i, k);
        _tile_loadd(6, w + i * PANEL, 4 * PANEL);
        _tile_loadd(7, w + i * PANEL + 64, 4 * PANEL);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * PANEL);
    _tile_stored(1, sums + 16, 4 * PANEL);
    _tile_stored(2, sums + 16 * PANEL, 4 * PANEL);
    _tile_stored(3, sums + 16 * PANEL + 16, 4 * PANEL);
}

INLINE void block_int8(const int8_t *x, const uint8_t *w, int64_t k, i32x16 sums[BLOCK][COLUMNS]) {
    for (int64_t c = 0; c < PANEL; c += 32) half_block(x, w + c * DEPTH, k, (int32_t *)sums + c);
}

#else

#define BLOCK TILE

INLINE int begin_blocks(void) { return 0; }
INLINE void end_blocks(int begun) { (void)begun; }

#endif
