/* Checks of a call's or an instruction's operands; and plans, trained models that run without Python.
 *
 * A plan is one block of little-endian int64 words, written by fastae/plans.py:
 *
 *     head, PLAN_WORDS words │ code: instructions as a Program encodes them │ segments │ their content │ JSON
 *
 * An instruction has INSTRUCTION_WORDS words: kernel, bits of the dims that are the rows of the batch, operands. A segment
 * is (offset in the arena, elements, offset of its content in the plan in bytes): what lasts, header included.
 * Nothing is believed: fastae_plan_open checks every number by which something is read or written. */
#ifndef FASTAE_PLAN_H
#define FASTAE_PLAN_H

#include "team.h"

enum { PLAN_MAGIC = 0, PLAN_FORMAT, PLAN_SIZE, PLAN_SUM, PLAN_TABLE, PLAN_ITEMSIZE = 8, PLAN_BATCH, PLAN_NEEDS,
       PLAN_ARENA, PLAN_SEGMENTS, PLAN_SEGMENTS_AT, PLAN_TEXT_BYTES, PLAN_TEXT_AT, PLAN_ROUTINES = 16,
       PLAN_KINDS = 7, ROUTINE_WORDS = 20, PLAN_WORDS = PLAN_ROUTINES + PLAN_KINDS * ROUTINE_WORDS,
       INSTRUCTION_WORDS = 40 };
/* Rows of the batch, ROWS_WORDS words: columns; offset and columns of the matrix they lie in, or of two of them. */
enum { ROWS_COLUMNS = 0, ROWS_FIRST, ROWS_SECOND = 3, ROWS_WORDS = 5 };
enum { ROUTINE_COUNT = 0, ROUTINE_CODE, ROUTINE_LOSS, ROUTINE_CHECK, ROUTINE_TRAINS, ROUTINE_INPUT,
       ROUTINE_TARGET = ROUTINE_INPUT + ROWS_WORDS, ROUTINE_OUTPUT = ROUTINE_TARGET + ROWS_WORDS };
enum { HEADER_BYTES = 64, LINE = 64, FORMAT = 2 };

static const char MAGIC[8] = {'f', 'a', 's', 't', 'a', 'e', 'P', '\n'};
#define MOST_ELEMENTS (INT64_C(1) << 48)

static const char *error_text(int code)
{
    switch (code) {
    case FASTAE_OK: return "no error";
    case FASTAE_ERROR_NULL: return "a pointer is NULL that may not be";
    case FASTAE_ERROR_ALIGNMENT: return "a pointer is misaligned";
    case FASTAE_ERROR_SIZE: return "a size is less than 1, or is not what the others make it";
    case FASTAE_ERROR_CONSTANT: return "a constant is out of its range";
    case FASTAE_ERROR_OVERFLOW: return "a size in bytes does not fit an int64_t";
    case FASTAE_ERROR_FORMAT: return "not a plan, or a damaged one";
    case FASTAE_ERROR_VERSION: return "a plan of a fastae with other kernels: make it again";
    case FASTAE_ERROR_ROUTINE: return "the plan does not have this routine, or it has no use for an argument";
    case FASTAE_ERROR_DIVERGED: return "a loss is not finite; the update was not made";
    default: return "unknown error";
    }
}

/* -- checks ------------------------------------------------------------------------------------ */

static int64_t dim_of(const Row *row, const Argument *a, int i, const int64_t *o)
{
    return a->dims[i] < 0 ? -1 - a->dims[i] : o[row->arguments + a->dims[i]];
}

/* Elements of an array without padding, or -1 where their bytes are too many. */
static int64_t elements(const Row *row, int argument, const int64_t *o)
{
    const Argument *a = &row->argument[argument];
    int64_t size = 8;
    int overflow = 0;
    for (int i = 0; i < a->rank; i++) size = multiply(size, dim_of(row, a, i, o), &overflow);
    return overflow ? -1 : size / 8;
}

/* Constants in their ranges; sizes of at least 1 that suit each other and the constants. Workspaces are as large as plain
 * arrays ask for; in a Program kernels look themselves what one has room for. */
static int check_numbers(const Row *row, const int64_t *o, int plain)
{
    int64_t derived[MOST_DIMS];
    for (int i = 0; i < row->arguments; i++) {
        const Argument *a = &row->argument[i];
        if (a->kind != INTEGER_CONSTANT && a->kind != REAL_CONSTANT) continue;
        const double value = a->kind == REAL_CONSTANT ? as_real(o[i]) : (double)o[i];
        if (!(value >= a->low && value <= a->high) || (a->above && value == a->low) ||
            (a->below && value == a->high) || !isfinite(value))
            return FASTAE_ERROR_CONSTANT;
    }
    const int64_t *dims = o + row->arguments;
    for (int d = 0; d < row->dims; d++)
        if (dims[d] < 1 || dims[d] < row->least[d]) return FASTAE_ERROR_SIZE;
    if (row->rules) {
        const int error = row->rules(o, derived);
        if (error) return error;
        for (int d = 0; d < row->dims; d++)
            if (row->derived >> d & 1 &&
                (row->workspace >> d & 1 ? plain && dims[d] < derived[d] : dims[d] != derived[d]))
                return FASTAE_ERROR_SIZE;
    }
    for (int i = 0; i < row->arguments; i++)
        if (row->argument[i].kind <= INDEX && elements(row, i, o) < 0) return FASTAE_ERROR_OVERFLOW;
    return FASTAE_OK;
}

/* Whether what is absent may be: the derivative of the linear activation alone needs no output, and the states of a
 * parameter come together. `absent` is what stands for it among the operands. */
static int check_presence(const Row *row, const int64_t *o, int64_t absent, int work_too)
{
    int states = 0, without = 0, activation = 0;
    for (int i = 0; i < row->arguments; i++)
        if (row->argument[i].activation) activation = o[i] != FASTAE_LINEAR;
    for (int i = 0; i < row->arguments; i++) {
        const Argument *a = &row->argument[i];
        if (a->kind > INDEX) continue;
        if (a->optional && a->state) states++, without += o[i] == absent;
        if (o[i] != absent) continue;
        if (!a->optional || (a->work && work_too) || (a->saved && activation)) return FASTAE_ERROR_NULL;
    }
    return without && without != states ? FASTAE_ERROR_NULL : FASTAE_OK;
}

/* A direct call: pointers there and aligned, and then made offsets from address 0. */
static int check_call(const Row *row, int64_t *o, int64_t itemsize)
{
    int error = check_presence(row, o, 0, 1);
    if (error) return error;
    for (int i = 0; i < row->arguments; i++)
        if (row->argument[i].kind <= INDEX && o[i] % (row->argument[i].kind == INDEX ? 8 : itemsize))
            return FASTAE_ERROR_ALIGNMENT;
    error = check_numbers(row, o, 1);
    if (error) return error;
    for (int i = 0; i < row->arguments; i++)
        if (row->argument[i].kind <= INDEX) o[i] = o[i] ? o[i] / itemsize : -1;
    return FASTAE_OK;
}

/* The dims of work arrays, from the integer constants and the other dims. */
static int fill_workspace(const Row *row, int64_t *o)
{
    int64_t derived[MOST_DIMS];
    int64_t *dims = o + row->arguments;
    for (int i = 0; i < row->arguments; i++) {
        const Argument *a = &row->argument[i];
        if (a->kind == INTEGER_CONSTANT && !((double)o[i] >= a->low && (double)o[i] <= a->high))
            return FASTAE_ERROR_CONSTANT;
    }
    for (int d = 0; d < row->dims; d++)
        if (!(row->workspace >> d & 1) && (dims[d] < 1 || dims[d] < row->least[d])) return FASTAE_ERROR_SIZE;
    if (row->rules) {
        const int error = row->rules(o, derived);
        if (error) return error;
        for (int d = 0; d < row->dims; d++) {
            if (row->workspace >> d & 1)
                dims[d] = derived[d];
            else if (row->derived >> d & 1 && dims[d] != derived[d])
                return FASTAE_ERROR_SIZE;
        }
    }
    for (int i = 0; i < row->arguments; i++)
        if (row->argument[i].kind <= INDEX && elements(row, i, o) < 0) return FASTAE_ERROR_OVERFLOW;
    return FASTAE_OK;
}

/* -- plans ------------------------------------------------------------------------------------- */

/* Row stride in a Program: as fastae.program.row_stride. */
static int64_t padded(int64_t columns, int64_t pad)
{
    const int64_t lines = (columns + pad - 1) / pad;
    return (lines + (lines >= 8 && lines % 4 == 0)) * pad;
}

static int fits(int64_t first, int64_t count, int64_t end)
{
    return first >= 0 && count >= 0 && first <= end && count <= end - first;
}

/* Elements of an array in a Program, to the end of its last line; sizes are known to be below MOST_ELEMENTS. */
static int64_t padded_elements(const Row *row, const Argument *a, const int64_t *o, int64_t pad)
{
    int64_t rows = dim_of(row, a, 0, o), columns = 1;
    for (int i = 1; i < a->rank; i++) columns *= dim_of(row, a, i, o);
    if (a->rank == 1) return (rows + pad - 1) / pad * pad;
    return a->images ? (rows + pad - 1) / pad * pad * columns : rows * padded(columns, pad);
}

static int check_instruction(const int64_t *code, int64_t itemsize, int64_t batch, int64_t least, int64_t arena)
{
    if (code[0] < 0 || code[0] >= KERNELS) return 0;
    const Row *row = &ROWS[code[0]];
    const int64_t *o = code + 2, pad = LINE / itemsize;
    if (row->arguments + row->dims > MOST_OPERANDS || code[1] < 0 || code[1] >> row->dims) return 0;
    if (check_presence(row, o, -1, 0) || check_numbers(row, o, 0)) return 0;
    for (int i = 0; i < row->arguments; i++) {
        const Argument *a = &row->argument[i];
        if (a->kind > INDEX || o[i] == -1) continue;
        if (a->kind == INDEX) { /* the updates done and the seed, never the number of a row */
            if (a->rank != 1 || a->dims[0] >= 0 || o[i] < 0 || o[i] > HEADER_BYTES ||
                !fits(o[i] * itemsize, 8 * (-1 - a->dims[0]), HEADER_BYTES) || o[i] * itemsize % 8)
                return 0;
            continue;
        }
        if (elements(row, i, o) > MOST_ELEMENTS || o[i] < HEADER_BYTES / itemsize || o[i] % pad ||
            !fits(o[i], padded_elements(row, a, o, pad), arena))
            return 0;
    }
    /* For fewer rows sizes must go together too; what they make grows with them. */
    int64_t fewer[MOST_OPERANDS];
    memcpy(fewer, o, sizeof fewer);
    for (int d = 0; d < row->dims; d++) {
        if (!(code[1] >> d & 1)) continue;
        if (fewer[row->arguments + d] != batch || row->derived >> d & 1) return 0;
        fewer[row->arguments + d] = least;
    }
    return !check_numbers(row, fewer, 0);
}

/* A matrix of the batch at a place of the arena. */
static int check_matrix(const int64_t *words, const int64_t *place)
{
    const int64_t itemsize = words[PLAN_ITEMSIZE], pad = LINE / itemsize, offset = place[0], columns = place[1];
    return columns >= 1 && columns <= MOST_ELEMENTS && offset >= HEADER_BYTES / itemsize && offset % pad == 0 &&
           padded(columns, pad) <= MOST_ELEMENTS / words[PLAN_BATCH] &&
           fits(offset, words[PLAN_BATCH] * padded(columns, pad), words[PLAN_ARENA]);
}

static int check_rows(const int64_t *words, const int64_t *rows)
{
    const int64_t *first = rows + ROWS_FIRST, *second = rows + ROWS_SECOND;
    const int alone = second[0] == 0 && second[1] == 0;
    return check_matrix(words, first) && (alone || check_matrix(words, second)) &&
           rows[ROWS_COLUMNS] == first[1] + second[1];
}

static int check_routine(const int64_t *words, int kind)
{
    const int64_t *routine = words + PLAN_ROUTINES + kind * ROUTINE_WORDS;
    const int64_t count = routine[ROUTINE_COUNT], itemsize = words[PLAN_ITEMSIZE], arena = words[PLAN_ARENA];
    const int trains = kind == FASTAE_TRAIN || kind == FASTAE_TRAIN + 2, infers = kind <= FASTAE_RECONSTRUCT;
    const int own_target = kind > FASTAE_EVALUATE;
    if (count < 0 || count > words[PLAN_SIZE] / (8 * INSTRUCTION_WORDS)) return 0;
    if (!fits(routine[ROUTINE_CODE], count * 8 * INSTRUCTION_WORDS, words[PLAN_SIZE]) || routine[ROUTINE_CODE] % 8)
        return 0;
    if (!check_rows(words, routine + ROUTINE_INPUT)) return 0;
    if (own_target && !check_rows(words, routine + ROUTINE_TARGET)) return 0;
    if (infers && !check_rows(words, routine + ROUTINE_OUTPUT)) return 0;
    if (!infers && (!fits(routine[ROUTINE_LOSS], 1, arena) || routine[ROUTINE_LOSS] < HEADER_BYTES / itemsize ||
                    routine[ROUTINE_CHECK] < 1 || routine[ROUTINE_CHECK] > count))
        return 0;
    if (infers && routine[ROUTINE_CHECK] != 0) return 0;
    if (routine[ROUTINE_TRAINS] != trains) return 0;
    const int64_t *code = words + routine[ROUTINE_CODE] / 8;
    for (int64_t i = 0; i < count; i++)
        if (!check_instruction(code + i * INSTRUCTION_WORDS, itemsize, words[PLAN_BATCH],
                               trains ? words[PLAN_NEEDS] : 1, arena))
            return 0;
    return 1;
}

static uint64_t sum_of(const int64_t *words, int64_t count)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325); /* FNV-1a, by words */
    for (int64_t i = 0; i < count; i++)
        if (i != PLAN_SUM) sum = (sum ^ (uint64_t)words[i]) * UINT64_C(0x100000001b3);
    return sum;
}

/* There is a routine of this kind. An encoder may have no instruction, but it has an input. */
static int has_routine(const int64_t *words, int kind)
{
    return words[PLAN_ROUTINES + kind * ROUTINE_WORDS + ROUTINE_INPUT + ROWS_COLUMNS] != 0;
}

static int columns_agree(int64_t *known, int64_t columns)
{
    if (*known == 0) *known = columns;
    return *known == columns;
}

static int plan_open(const void *bytes, int64_t size, fastae_plan *plan)
{
    if (!bytes || !plan) return FASTAE_ERROR_NULL;
    if ((uintptr_t)bytes % 8) return FASTAE_ERROR_ALIGNMENT;
    memset(plan, 0, sizeof *plan);
    const int64_t *words = (const int64_t *)bytes;
    if (size < 8 * PLAN_WORDS || size % 8 || memcmp(bytes, MAGIC, 8)) return FASTAE_ERROR_FORMAT;
    if (words[PLAN_FORMAT] != FORMAT) return FASTAE_ERROR_VERSION;
    if (words[PLAN_SIZE] != size || (uint64_t)words[PLAN_SUM] != sum_of(words, size / 8)) return FASTAE_ERROR_FORMAT;
    if (memcmp(words + PLAN_TABLE, TABLE_HASH, sizeof TABLE_HASH)) return FASTAE_ERROR_VERSION;
    const int64_t itemsize = words[PLAN_ITEMSIZE], batch = words[PLAN_BATCH], arena = words[PLAN_ARENA];
    if ((itemsize != 4 && itemsize != 8) || batch < 1 || batch > MOST_ELEMENTS || words[PLAN_NEEDS] < 1 ||
        words[PLAN_NEEDS] > batch || arena < LINE / itemsize || arena > MOST_ELEMENTS || arena % (LINE / itemsize))
        return FASTAE_ERROR_FORMAT;
    if (words[PLAN_SEGMENTS] < 0 || words[PLAN_SEGMENTS] > size / 24 || words[PLAN_SEGMENTS_AT] % 8 ||
        !fits(words[PLAN_SEGMENTS_AT], 24 * words[PLAN_SEGMENTS], size) ||
        !fits(words[PLAN_TEXT_AT], words[PLAN_TEXT_BYTES], size))
        return FASTAE_ERROR_FORMAT;
    const int64_t *segments = words + words[PLAN_SEGMENTS_AT] / 8;
    for (int64_t i = 0; i < words[PLAN_SEGMENTS]; i++) {
        const int64_t *s = segments + 3 * i;
        /* the content after all that is read as numbers: storing writes it */
        if (!fits(s[0], s[1], arena) || !fits(s[2], s[1] * itemsize, size) || s[2] % 8 ||
            s[2] < words[PLAN_SEGMENTS_AT] + 24 * words[PLAN_SEGMENTS])
            return FASTAE_ERROR_FORMAT;
    }
    int64_t routines = 0, input = 0, code = 0, output = 0;
    for (int kind = 0; kind < PLAN_KINDS; kind++) {
        if (!has_routine(words, kind)) continue;
        const int64_t *routine = words + PLAN_ROUTINES + kind * ROUTINE_WORDS;
        if (!check_routine(words, kind) ||
            routine[ROUTINE_CODE] + routine[ROUTINE_COUNT] * 8 * INSTRUCTION_WORDS > words[PLAN_SEGMENTS_AT] ||
            !columns_agree(kind == FASTAE_DECODE ? &code : &input, routine[ROUTINE_INPUT + ROWS_COLUMNS]) ||
            (kind <= FASTAE_RECONSTRUCT &&
             !columns_agree(kind == FASTAE_ENCODE ? &code : &output, routine[ROUTINE_OUTPUT + ROWS_COLUMNS])) ||
            (kind > FASTAE_EVALUATE && !columns_agree(&output, routine[ROUTINE_TARGET + ROWS_COLUMNS])))
            return FASTAE_ERROR_FORMAT;
        routines |= INT64_C(1) << (kind > FASTAE_EVALUATE ? kind - 2 : kind);
    }
    plan->bytes = bytes;
    plan->size = size;
    plan->arena_size = arena * itemsize;
    plan->itemsize = itemsize;
    plan->batch_size = batch;
    plan->needs_rows = words[PLAN_NEEDS];
    plan->input_columns = input;
    plan->code_columns = code;
    plan->output_columns = output;
    plan->routines = routines;
    return FASTAE_OK;
}

static int check_arena(const fastae_plan *plan, const void *arena)
{
    if (!plan || !plan->bytes || !arena) return FASTAE_ERROR_NULL;
    return (uintptr_t)arena % LINE ? FASTAE_ERROR_ALIGNMENT : FASTAE_OK;
}

static int plan_load(const fastae_plan *plan, void *arena)
{
    const int error = check_arena(plan, arena);
    if (error) return error;
    const int64_t *words = (const int64_t *)plan->bytes, *s = words + words[PLAN_SEGMENTS_AT] / 8;
    memset(arena, 0, (size_t)plan->arena_size);
    for (int64_t i = 0; i < words[PLAN_SEGMENTS]; i++, s += 3)
        memcpy((char *)arena + s[0] * plan->itemsize, (const char *)words + s[2], (size_t)(s[1] * plan->itemsize));
    return FASTAE_OK;
}

static int plan_store(const fastae_plan *plan, const void *arena, void *bytes)
{
    const int error = check_arena(plan, arena);
    if (error) return error;
    if (!bytes) return FASTAE_ERROR_NULL;
    if ((uintptr_t)bytes % 8) return FASTAE_ERROR_ALIGNMENT;
    int64_t *words = (int64_t *)bytes;
    memmove(bytes, plan->bytes, (size_t)plan->size);
    const int64_t *s = words + words[PLAN_SEGMENTS_AT] / 8;
    for (int64_t i = 0; i < words[PLAN_SEGMENTS]; i++, s += 3)
        memcpy((char *)bytes + s[2], (const char *)arena + s[0] * plan->itemsize, (size_t)(s[1] * plan->itemsize));
    words[PLAN_SUM] = (int64_t)sum_of(words, plan->size / 8);
    return FASTAE_OK;
}

/* Rows of the caller's into the arena, and back. */
static void move_in(char *arena, const int64_t *rows, const char *from, int64_t count, int64_t itemsize)
{
    for (const int64_t *piece = rows + ROWS_FIRST; piece < rows + ROWS_WORDS; piece += 2) {
        const int64_t step = padded(piece[1], LINE / itemsize) * itemsize;
        for (int64_t i = 0; i < count; i++)
            memcpy(arena + piece[0] * itemsize + i * step, from + i * rows[ROWS_COLUMNS] * itemsize,
                   (size_t)(piece[1] * itemsize));
        from += piece[1] * itemsize;
    }
}

static void move_out(const char *arena, const int64_t *rows, char *to, int64_t count, int64_t itemsize)
{
    for (const int64_t *piece = rows + ROWS_FIRST; piece < rows + ROWS_WORDS; piece += 2) {
        const int64_t step = padded(piece[1], LINE / itemsize) * itemsize;
        for (int64_t i = 0; i < count; i++)
            memcpy(to + i * rows[ROWS_COLUMNS] * itemsize, arena + piece[0] * itemsize + i * step,
                   (size_t)(piece[1] * itemsize));
        to += piece[1] * itemsize;
    }
}

static int run_plan(const fastae_plan *plan, void *arena, int routine, int64_t rows, const void *input,
                    const void *target, void *output, double *losses)
{
    int error = check_arena(plan, arena);
    if (error) return error;
    const int infers = routine >= FASTAE_ENCODE && routine <= FASTAE_RECONSTRUCT;
    const int64_t *words = (const int64_t *)plan->bytes;
    if (routine < FASTAE_ENCODE || routine > FASTAE_EVALUATE) return FASTAE_ERROR_ROUTINE;
    const int kind = !infers && target ? routine + 2 : routine;
    if (!has_routine(words, kind) || (infers ? target || losses : output != NULL)) return FASTAE_ERROR_ROUTINE;
    if (!input || (infers && !output)) return FASTAE_ERROR_NULL;
    const int64_t itemsize = plan->itemsize, batch = plan->batch_size, pad = LINE / itemsize;
    if ((uintptr_t)input % (uintptr_t)itemsize || (uintptr_t)target % (uintptr_t)itemsize ||
        (uintptr_t)output % (uintptr_t)itemsize || (uintptr_t)losses % sizeof(double))
        return FASTAE_ERROR_ALIGNMENT;
    const int64_t *r = words + PLAN_ROUTINES + kind * ROUTINE_WORDS;
    const int64_t most = MOST_ELEMENTS / (r[ROUTINE_INPUT + ROWS_COLUMNS] > r[ROUTINE_OUTPUT + ROWS_COLUMNS]
                                              ? r[ROUTINE_INPUT + ROWS_COLUMNS] : r[ROUTINE_OUTPUT + ROWS_COLUMNS]);
    if (rows < 1 || rows > most ||
        (routine == FASTAE_TRAIN && rows % batch && rows % batch < plan->needs_rows))
        return FASTAE_ERROR_SIZE;

    const Instruction *instructions = itemsize == 4 ? INSTRUCTIONS_f32 : INSTRUCTIONS_f64;
    const int64_t *code = words + r[ROUTINE_CODE] / 8;
    const int64_t in_row = r[ROUTINE_INPUT + ROWS_COLUMNS] * itemsize;
    const int64_t target_row = r[ROUTINE_TARGET + ROWS_COLUMNS] * itemsize;
    const int64_t out_row = r[ROUTINE_OUTPUT + ROWS_COLUMNS] * itemsize;
    char *at = (char *)arena;
    const uint64_t before = flush_denormals();
    for (int64_t start = 0, number = 0; start < rows && !error; start += batch, number++) {
        const int64_t count = rows - start < batch ? rows - start : batch;
        move_in(at, r + ROUTINE_INPUT, (const char *)input + start * in_row, count, itemsize);
        if (kind > FASTAE_EVALUATE)
            move_in(at, r + ROUTINE_TARGET, (const char *)target + start * target_row, count, itemsize);
        for (int64_t i = 0; i <= r[ROUTINE_COUNT]; i++) {
            if (!infers && i == r[ROUTINE_CHECK]) {
                const double loss = itemsize == 4 ? (double)((const float *)arena)[r[ROUTINE_LOSS]]
                                                  : ((const double *)arena)[r[ROUTINE_LOSS]];
                if (losses) losses[number] = loss;
                if (!isfinite(loss)) {
                    error = FASTAE_ERROR_DIVERGED;
                    break;
                }
            }
            if (i == r[ROUTINE_COUNT]) break;
            const int64_t *line = code + i * INSTRUCTION_WORDS;
            if (count == batch || !line[1]) {
                instructions[line[0]](arena, line + 2, pad, 0, 1);
            } else {
                int64_t fewer[MOST_OPERANDS];
                const Row *row = &ROWS[line[0]];
                memcpy(fewer, line + 2, sizeof(int64_t) * (size_t)(row->arguments + row->dims));
                for (int d = 0; d < row->dims; d++)
                    if (line[1] >> d & 1) fewer[row->arguments + d] = count;
                instructions[line[0]](arena, fewer, pad, 0, 1);
            }
        }
        if (infers)
            move_out(at, r + ROUTINE_OUTPUT, (char *)output + start * out_row, count, itemsize);
        if (!error && r[ROUTINE_TRAINS]) ((int64_t *)arena)[0]++;
    }
    restore_denormals(before);
    return error;
}

#endif
