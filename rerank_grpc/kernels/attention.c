/* Attention over packed parts: both ways or causal, whole or in a window, behind prefixes. */
#include <stdlib.h>
#include <string.h>

#include "heads.h"
#include "kernels.h"
#include "tiles.h"

#define UNITS 4       /* units of work for a thread, at least where a part is long enough to be cut */
#define LEAST_ROWS 48 /* queries of a unit: with fewer, the packing of its keys shows */
#define SEGMENTS 2    /* the keys of the prefix, if any, and those of the part itself */

/* Places from `first` up to `end`. */
struct span {
    int64_t first, end;
};

/* Packed keys and values of the places from `begin` on, counted through the prefix and the part. */
struct segment {
    const uint32_t *keys, *values;
    int64_t begin, count;
};

/* The keys of a segment that a tile sees: `count` from `low` on, whose scores begin at `column`. */
struct strip {
    const struct segment *segment;
    int64_t low, count, column;
};

/* Some queries of a part. */
struct unit {
    int64_t part, first, end, cost;
};

/* What a thread writes to. */
struct workspace {
    uint32_t *keys, *values; /* of the part itself */
    bf16 *query;             /* [TILE, size] */
    float *scores;           /* [TILE, width] */
    float *mixed;            /* [TILE, size] */
    int64_t width;
};

/* ---- what a query sees ----------------------------------------------------- */

INLINE int64_t queries_of(const struct attention *call, int64_t part) {
    return call->query_starts[part + 1] - call->query_starts[part];
}

INLINE int64_t own_keys(const struct attention *call, int64_t part) {
    return call->key_starts[part + 1] - call->key_starts[part];
}

/* The prefix that a part continues, -1 for none. */
INLINE int64_t prefix_of(const struct attention *call, int64_t part) {
    return call->continued ? call->continued[part] : -1;
}

INLINE int64_t keys_before(const struct attention *call, int64_t part) {
    int64_t prefix = prefix_of(call, part);
    return prefix < 0 ? 0 : call->prefixes[prefix].tokens;
}

INLINE struct span within(int64_t first, int64_t end, int64_t count) {
    first = least(most(first, 0), count);
    return (struct span){first, most(first, least(end, count))};
}

/* The places that a query of a part sees. */
INLINE struct span seen(const struct attention *call, int64_t part, int64_t query) {
    int64_t before = keys_before(call, part), count = before + own_keys(call, part), window = call->window;
    int64_t place = call->causal ? count - queries_of(call, part) + query : query;
    int64_t first = window ? place - window + 1 : 0;
    if (call->causal) return within(first, place + 1, count);
    return within(first, window ? place + window : count, count);
}

/* What of a span lies in `count` places from `begin` on, counted from there. */
INLINE struct span inside(struct span span, int64_t begin, int64_t count) {
    return within(span.first - begin, span.end - begin, count);
}

/* ---- softmax --------------------------------------------------------------- */

/* The lanes of the sixteen places from i on that lie in a span, of which it has some. */
INLINE __mmask16 lanes(struct span span, int64_t i) {
    uint32_t mask = 0xffff;
    if (span.first > i) mask <<= span.first - i;
    if (span.end < i + 16) mask &= 0xffffu >> (i + 16 - span.end);
    return (__mmask16)mask;
}

INLINE __m512 highest(const float *scores, struct span span, __m512 highest) {
    for (int64_t i = span.first / 16 * 16; i < span.end; i += 16)
        highest = _mm512_mask_max_ps(highest, lanes(span, i), highest, _mm512_loadu_ps(scores + i));
    return highest;
}

/* Scores to weights exp(factor s + top) in bf16, in place, 0 outside of the span; returns total + their sums.
 * A weight never overtakes what is still to be read, because it is half as wide as a score. */
INLINE __m512 weigh(float *scores, struct span span, int64_t count, __m512 factor, __m512 top, __m512 total) {
    bf16 *weights = (bf16 *)scores;
    int64_t i = 0, first = span.first / 16 * 16;
    for (; i < first; i += 16) _mm256_storeu_si256((void *)(weights + i), _mm256_setzero_si256());
    for (; i < span.end; i += 16) {
        __m512 e = exponential(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), factor, top));
        e = _mm512_maskz_mov_ps(lanes(span, i), e);
        total = _mm512_add_ps(total, e);
        narrow(weights + i, e);
    }
    for (; i < count; i += 16) _mm256_storeu_si256((void *)(weights + i), _mm256_setzero_si256());
    return total;
}

/* ---- tiles: rows are queries of the heads that share a key head, token by token -------- */

/* Where the head of a row of a group lies in a matrix of tokens. */
INLINE int64_t token_of(const struct attention *call, int64_t part, int64_t row) {
    return call->query_starts[part] + row / (call->heads / call->key_heads);
}

INLINE int64_t head_of(const struct attention *call, int64_t group, int64_t row) {
    int64_t repeats = call->heads / call->key_heads;
    return group * repeats + row % repeats;
}

/* Copies queries, and turns them. */
static void load_queries(const struct attention *call, int64_t part, int64_t group, int64_t row, int rows,
                         bf16 *to) {
    int64_t size = call->size;
    for (int r = 0; r < rows; r++, to += size) {
        int64_t token = token_of(call, part, row + r), angle = token * (size / 2);
        const bf16 *from = call->query + token * call->query_stride + head_of(call, group, row + r) * size;
        if (call->query_cosines)
            turn_head(from, size, NULL, 1.0f, call->query_cosines + angle, call->query_sines + angle, to);
        else
            memcpy(to, from, (size_t)size * sizeof(bf16));
    }
}

/* Writes mixed rows, each divided by the sum of its weights; a query that sees nothing gets 0. */
static void store_rows(const struct attention *call, int64_t part, int64_t group, int64_t row, int rows,
                       const float *mixed, const float *totals) {
    int64_t size = call->size;
    for (int r = 0; r < rows; r++, mixed += size) {
        int64_t token = token_of(call, part, row + r);
        bf16 *out = call->out + (token * call->heads + head_of(call, group, row + r)) * size;
        __m512 factor = _mm512_set1_ps(totals[r] == 0.0f ? 0.0f : 1.0f / totals[r]);
        for (int64_t i = 0; i < size; i += 16) narrow(out + i, _mm512_mul_ps(_mm512_loadu_ps(mixed + i), factor));
    }
}

/* Softmax over the strips of one row, in place; returns the sum of the weights. */
static float weigh_row(const struct strip *strips, int count, struct span sees, float scale, float *scores) {
    struct span spans[SEGMENTS];
    __m512 top = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int s = 0; s < count; s++) {
        spans[s] = inside(sees, strips[s].segment->begin + strips[s].low, strips[s].count);
        top = highest(scores + strips[s].column, spans[s], top);
    }
    top = _mm512_set1_ps(-_mm512_reduce_max_ps(top) * scale);
    for (int s = 0; s < count; s++)
        total = weigh(scores + strips[s].column, spans[s], strips[s].count, _mm512_set1_ps(scale), top, total);
    return _mm512_reduce_add_ps(total);
}

static void attend_tile(const struct attention *call, int64_t part, int64_t group, int64_t row, int rows,
                        const struct segment *segments, int count, struct workspace *space) {
    int64_t size = call->size, repeats = call->heads / call->key_heads, column = 0;
    struct span spans[TILE];
    struct strip strips[SEGMENTS];
    float totals[TILE];
    for (int r = 0; r < rows; r++) spans[r] = seen(call, part, (row + r) / repeats);
    load_queries(call, part, group, row, rows, space->query);
    for (int s = 0; s < count; s++) {
        const struct segment *from = segments + s;
        /* Both ends grow from row to row. */
        struct span all = inside((struct span){spans[0].first, spans[rows - 1].end}, from->begin, from->count);
        int64_t low = all.first / 16 * 16, keys = all.end > all.first ? all.end - low : 0;
        strips[s] = (struct strip){from, low, keys, column};
        score_keys(rows, space->query, size, from->keys + low * (size / 2), keys, space->scores + column, space->width);
        column += sixteens(keys);
    }
    for (int r = 0; r < rows; r++)
        totals[r] = weigh_row(strips, count, spans[r], call->scale, space->scores + r * space->width);
    for (int s = 0; s < count; s++)
        mix_values(rows, (bf16 *)(space->scores + strips[s].column), 2 * space->width,
                   strips[s].segment->values + strips[s].low / 2 * size, strips[s].count, size, s > 0, space->mixed);
    store_rows(call, part, group, row, rows, space->mixed, totals);
}

/* ---- units of work --------------------------------------------------------- */

/* Packs the keys of a part that the queries of a unit see. */
static struct segment pack_part(const struct attention *call, const struct unit *unit, int64_t group,
                                struct workspace *space) {
    int64_t before = keys_before(call, unit->part), size = call->size;
    struct span all = {seen(call, unit->part, unit->first).first, seen(call, unit->part, unit->end - 1).end};
    struct span own = inside(all, before, own_keys(call, unit->part));
    int64_t low = own.first / 16 * 16, row = call->key_starts[unit->part] + low, angle = row * (size / 2);
    const bf16 *key = call->key + row * call->key_stride + group * size;
    const bf16 *value = call->value + row * call->value_stride + group * size;
    const float *cosines = call->key_cosines ? call->key_cosines + angle : NULL;
    const float *sines = call->key_cosines ? call->key_sines + angle : NULL;
    pack_keys(key, call->key_stride, own.end - low, size, cosines, sines, space->keys);
    pack_values(value, call->value_stride, own.end - low, size, space->values);
    return (struct segment){space->keys, space->values, before + low, own.end - low};
}

/* Where the panels of each prefix begin, counted in keys of one head; fills begins[prefix_count + 1]. */
static void place_prefixes(const struct attention *call, int64_t *begins) {
    begins[0] = 0;
    for (int64_t i = 0; i < call->prefix_count; i++) begins[i + 1] = begins[i] + sixteens(call->prefixes[i].tokens);
}

/* The packed keys, or behind all of them the packed values, of a key head of a prefix. */
INLINE uint32_t *panels(const struct attention *call, const int64_t *begins, uint32_t *packed, int64_t prefix,
                        int64_t group, int values) {
    int64_t all = begins[call->prefix_count];
    return packed + ((values * call->key_heads + group) * all + begins[prefix]) * (call->size / 2);
}

static void attend_unit(const struct attention *call, const struct unit *unit, int64_t group, const int64_t *begins,
                        uint32_t *packed, struct workspace *space) {
    int64_t prefix = prefix_of(call, unit->part), repeats = call->heads / call->key_heads;
    struct segment segments[SEGMENTS];
    int count = 0;
    if (prefix >= 0)
        segments[count++] = (struct segment){panels(call, begins, packed, prefix, group, 0),
                                             panels(call, begins, packed, prefix, group, 1), 0,
                                             call->prefixes[prefix].tokens};
    segments[count++] = pack_part(call, unit, group, space);
    for (int64_t row = unit->first * repeats; row < unit->end * repeats; row += TILE)
        attend_tile(call, unit->part, group, row, (int)least(TILE, unit->end * repeats - row), segments, count, space);
}

/* The work of a part: the scores of its queries, and the packing of its keys. */
INLINE int64_t cost(const struct attention *call, int64_t part) {
    return (queries_of(call, part) + TILE) * (keys_before(call, part) + own_keys(call, part));
}

INLINE int costliest_first(const void *a, const void *b) {
    int64_t first = ((const struct unit *)a)->cost, second = ((const struct unit *)b)->cost;
    return first < second ? 1 : first > second ? -1 : 0;
}

/* Cuts the parts into units, so that threads end together; fills `units`, if not NULL, and returns their number. */
static int64_t cut(const struct attention *call, struct unit *units) {
    int64_t all = 0, count = 0;
    for (int64_t part = 0; part < call->parts; part++) all += cost(call, part);
    int64_t share = most(1, all * call->key_heads / (UNITS * call->threads));
    for (int64_t part = 0; part < call->parts; part++) {
        int64_t queries = queries_of(call, part), pieces = (cost(call, part) + share - 1) / share;
        pieces = most(1, least(pieces, queries / LEAST_ROWS));
        int64_t rows = most(TILE, ((queries + pieces - 1) / pieces + TILE - 1) / TILE * TILE);
        for (int64_t first = 0; first < queries; first += rows, count++)
            if (units)
                units[count] = (struct unit){part, first, least(queries, first + rows), cost(call, part) / pieces};
    }
    if (units) qsort(units, (size_t)count, sizeof *units, costliest_first);
    return count;
}

/* ---- memory ---------------------------------------------------------------- */

INLINE void *allocate(int64_t bytes) { return aligned_alloc(64, (size_t)(bytes / 64 + 1) * 64); }

static int make_space(const struct attention *call, struct workspace *space) {
    int64_t longest = 0, before = 0, size = call->size;
    for (int64_t part = 0; part < call->parts; part++) {
        longest = most(longest, sixteens(own_keys(call, part)));
        before = most(before, sixteens(keys_before(call, part)));
    }
    space->width = longest + before;
    space->keys = allocate(longest * size * 2);
    space->values = allocate(longest * size * 2);
    space->query = allocate(TILE * size * 2);
    space->scores = allocate(TILE * space->width * 4);
    space->mixed = allocate(TILE * size * 4);
    return space->keys && space->values && space->query && space->scores && space->mixed;
}

static void free_space(struct workspace *space) {
    free(space->keys);
    free(space->values);
    free(space->query);
    free(space->scores);
    free(space->mixed);
}

/* All threads pack the prefixes, each key head of each once, then they attend. Returns whether memory sufficed. */
static int attend(const struct attention *call, const struct unit *units, int64_t unit_count, const int64_t *begins,
                  uint32_t *packed) {
    int failed = 0;
#pragma omp parallel num_threads(call->threads)
    {
        struct workspace space;
        if (!make_space(call, &space)) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t i = 0; i < call->prefix_count; i++)
            for (int64_t group = 0; group < call->key_heads; group++) {
                const struct prefix *from = call->prefixes + i;
                pack_keys(from->key + group * from->key_head, from->key_stride, from->tokens, call->size, NULL, NULL,
                          panels(call, begins, packed, i, group, 0));
                pack_values(from->value + group * from->value_head, from->value_stride, from->tokens, call->size,
                            panels(call, begins, packed, i, group, 1));
            }
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t i = 0; i < unit_count; i++)
            for (int64_t group = 0; group < call->key_heads; group++)
                if (!failed) attend_unit(call, units + i, group, begins, packed, &space);
        free_space(&space);
    }
    return !failed;
}

int attention(const struct attention *call) {
    int64_t *begins = allocate((call->prefix_count + 1) * (int64_t)sizeof *begins), units_count = cut(call, NULL);
    struct unit *units = allocate(units_count * (int64_t)sizeof *units);
    uint32_t *packed = NULL;
    int done = 0;
    if (begins && units) {
        cut(call, units);
        place_prefixes(call, begins);
        packed = allocate(2 * call->key_heads * begins[call->prefix_count] * (call->size / 2) * 4);
        done = packed && attend(call, units, units_count, begins, packed);
    }
    free(begins);
    free(units);
    free(packed);
    return !done;
}
