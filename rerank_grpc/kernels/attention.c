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

/* A row of a tile: a query of one head of one token, and the places it sees. */
struct row {
    const bf16 *query;
    bf16 *out;
    int64_t token;
    struct span sees;
};

/* Some queries of a part. */
struct unit {
    int64_t part, first, end, cost;
};

/* The memory that a thread writes to. */
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

/* The part of a span that lies in `count` places from `begin` on, counted from there. */
INLINE struct span inside(struct span span, int64_t begin, int64_t count) {
    return within(span.first - begin, span.end - begin, count);
}

/* ---- softmax --------------------------------------------------------------- */

/* The lanes of the sixteen places from i on that lie in a span, of which it has some. */
INLINE lanes inside_of(struct span span, int64_t i) { return lanes_between(span.first - i, span.end - i); }

INLINE f32x16 highest(const float *scores, struct span span, f32x16 highest) {
    for (int64_t i = span.first / 16 * 16; i < span.end; i += 16)
        highest = maximum_where(inside_of(span, i), highest, load(scores + i));
    return highest;
}

/* Scores to weights 2^(factor s + top) in bf16, in place, 0 outside of the span; returns total + their sums.
 * A weight never overtakes what is still to be read, because it is half as wide as a score. */
INLINE f32x16 weigh(float *scores, struct span span, int64_t count, f32x16 factor, f32x16 top, f32x16 total) {
    bf16 *weights = (bf16 *)scores;
    int64_t i = 0, first = span.first / 16 * 16;
    for (; i < first; i += 16) memset(weights + i, 0, 16 * sizeof *weights);
    for (; i < span.end; i += 16) {
        f32x16 e = power_of_two(fmadd(load(scores + i), factor, top));
        e = keep(inside_of(span, i), e);
        total = add(total, e);
        narrow(weights + i, e);
    }
    for (; i < count; i += 16) memset(weights + i, 0, 16 * sizeof *weights);
    return total;
}

/* ---- tiles ----------------------------------------------------------------- */

/* Fills the rows of a tile: the queries of the heads that share a key head, token by token, from `at` on. */
INLINE void list_rows(const struct attention *call, const struct unit *unit, int64_t group, int64_t at, int count,
                      struct row *rows) {
    int64_t size = call->size, repeats = call->heads / call->key_heads, query = at / repeats, repeat = at % repeats;
    for (int r = 0; r < count; r++) {
        int64_t token = call->query_starts[unit->part] + query, head = group * repeats + repeat;
        rows[r].query = call->query + token * call->query_stride + head * size;
        rows[r].out = call->out + (token * call->heads + head) * size;
        rows[r].token = token;
        rows[r].sees = repeat && r ? rows[r - 1].sees : seen(call, unit->part, query);
        if (++repeat == repeats) {
            repeat = 0;
            query++;
        }
    }
}

/* Copies the queries of a tile, turned if there are cosines. */
INLINE void load_queries(const struct attention *call, const struct row *rows, int count, bf16 *to) {
    int64_t size = call->size;
    for (int r = 0; r < count; r++, to += size) {
        int64_t angle = rows[r].token * (size / 2);
        if (call->query_cosines)
            turn_head(rows[r].query, size, NULL, 1.0f, call->query_cosines + angle, call->query_sines + angle, to);
        else
            copy_head(rows[r].query, size, to);
    }
}

/* Softmax over the strips of one row, in place; returns the sum of the weights. */
INLINE float weigh_row(const struct strip *strips, int count, struct span sees, float scale, float *scores) {
    struct span spans[SEGMENTS];
    f32x16 top = splat(-INFINITY), total = zeros();
    for (int s = 0; s < count; s++) {
        spans[s] = inside(sees, strips[s].segment->begin + strips[s].low, strips[s].count);
        top = highest(scores + strips[s].column, spans[s], top);
    }
    scale *= LOG2_E;
    top = splat(-highest_of(top) * scale);
    for (int s = 0; s < count; s++)
        total = weigh(scores + strips[s].column, spans[s], strips[s].count, splat(scale), top, total);
    return sum_of(total);
}

/* Writes a mixed row, divided by the sum of its weights; one that sees nothing gets 0. */
INLINE void store_row(const float *mixed, float total, int64_t size, bf16 *out) {
    f32x16 factor = splat(total == 0.0f ? 0.0f : 1.0f / total);
    for (int64_t i = 0; i < size; i += 16) narrow(out + i, mul(load(mixed + i), factor));
}

/* Attends for the rows of a tile. */
static void attend_tile(const struct attention *call, const struct row *rows, int count,
                        const struct segment *segments, int segment_count, struct workspace *space) {
    int64_t size = call->size, column = 0;
    struct strip strips[SEGMENTS];
    float totals[TILE];
    load_queries(call, rows, count, space->query);
    for (int s = 0; s < segment_count; s++) {
        const struct segment *from = segments + s;
        /* Both ends grow from row to row. */
        struct span all = {rows[0].sees.first, rows[count - 1].sees.end};
        all = inside(all, from->begin, from->count);
        int64_t low = all.first / 16 * 16, keys = all.end > all.first ? all.end - low : 0;
        strips[s] = (struct strip){from, low, keys, column};
        score_keys(count, space->query, size, from->keys + low * (size / 2), keys, space->scores + column,
                   space->width);
        column += sixteens(keys);
    }
    for (int r = 0; r < count; r++)
        totals[r] = weigh_row(strips, segment_count, rows[r].sees, call->scale, space->scores + r * space->width);
    for (int s = 0; s < segment_count; s++)
        mix_values(count, (bf16 *)(space->scores + strips[s].column), 2 * space->width,
                   strips[s].segment->values + strips[s].low / 2 * size, strips[s].count, size, s > 0, space->mixed);
    for (int r = 0; r < count; r++) store_row(space->mixed + r * size, totals[r], size, rows[r].out);
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

/* Asks for rows of a matrix, of which `size` numbers will be used. */
INLINE void prefetch(const bf16 *x, int64_t stride, int64_t count, int64_t size) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < size; i += 32) __builtin_prefetch(x + r * stride + i, 0, 2);
}

/* Asks for what is read of some rows of a part for a key head: it lies apart, and would come late. */
INLINE void prefetch_rows(const struct attention *call, const struct unit *unit, int64_t group, int64_t first) {
    int64_t size = call->size, width = call->heads / call->key_heads * size, rows = TILE * size / width;
    int64_t query = call->query_starts[unit->part] + unit->first + first, key = call->key_starts[unit->part] + first;
    int64_t queries = least(rows, call->query_starts[unit->part + 1] - query);
    int64_t keys = least(rows, call->key_starts[unit->part + 1] - key);
    prefetch(call->query + query * call->query_stride + group * width, call->query_stride, queries, width);
    prefetch(call->out + query * call->heads * size + group * width, call->heads * size, queries, width);
    prefetch(call->key + key * call->key_stride + group * size, call->key_stride, keys, size);
    prefetch(call->value + key * call->value_stride + group * size, call->value_stride, keys, size);
}

/* Attends for a unit and a key head, and asks for the rows of the next unit and key head meanwhile. */
static void attend_unit(const struct attention *call, const struct unit *unit, int64_t group, const struct unit *next,
                        int64_t next_group, const int64_t *begins, uint32_t *packed, struct workspace *space) {
    int64_t prefix = prefix_of(call, unit->part), repeats = call->heads / call->key_heads;
    struct segment segments[SEGMENTS];
    int count = 0;
    if (prefix >= 0)
        segments[count++] = (struct segment){panels(call, begins, packed, prefix, group, 0),
                                             panels(call, begins, packed, prefix, group, 1), 0,
                                             call->prefixes[prefix].tokens};
    segments[count++] = pack_part(call, unit, group, space);
    for (int64_t at = 0, end = (unit->end - unit->first) * repeats; at < end; at += TILE) {
        struct row rows[TILE];
        int tile = (int)least(TILE, end - at);
        prefetch_rows(call, next, next_group, at / repeats);
        list_rows(call, unit, group, unit->first * repeats + at, tile, rows);
        attend_tile(call, rows, tile, segments, count, space);
    }
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
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < unit_count * call->key_heads; i++) {
            int64_t next = i + 1 < unit_count * call->key_heads ? i + 1 : i, heads = call->key_heads;
            if (!failed)
                attend_unit(call, units + i / heads, i % heads, units + next / heads, next % heads, begins, packed,
                            &space);
        }
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
