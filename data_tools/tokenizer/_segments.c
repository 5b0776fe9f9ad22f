/* The loops of segments.py that Python is too slow for.
 *
 * Everything they work on belongs to the caller: buffers, whose lengths are checked here. Nothing is kept.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define LONGEST_KEY 64 /* bytes; longer segments hardly come twice, and are not looked up */
#define WINDOW 64      /* bytes whose cuts are the bits of a number */
#define PREFETCH(address) __builtin_prefetch(address)

/* A place of the hash table. A segment of up to 8 bytes is its `word`; of a longer one that is a hash. */
typedef struct {
    uint64_t word;
    uint32_t length, number; /* length 0: empty */
} Slot;

/* What `find` works on; the Python docstring says what each is. */
typedef struct {
    const uint8_t *data, *cuts;
    Py_ssize_t size, at, stop;
    Slot *slots;
    uint8_t *keys;
    uint32_t *key_ends;
    int32_t *found;
    int64_t *fresh;
    Py_ssize_t slot_count, key_bytes, capacity, found_capacity, entries, found_count, fresh_count;
} Search;

/* A segment, and where its search in the hash table begins. */
typedef struct {
    Py_ssize_t begin, end;
    uint64_t word;
    size_t place;
} Segment;

/* Bit i: a segment ends behind byte at + i, of the next `WINDOW` bytes or as many as there are. */
static uint64_t ends_in(const Search *s, Py_ssize_t at)
{
    uint64_t ends = 0;
    Py_ssize_t left = s->size - at;
    for (int i = 0; i < (left > WINDOW ? WINDOW : (int)left - 1); i++)
        ends |= (uint64_t)(s->cuts[s->data[at + i] << 8 | s->data[at + i + 1]] != 0) << i;
    return left > WINDOW ? ends : ends | (uint64_t)1 << (left - 1);
}

static uint64_t word_of(const Search *s, Py_ssize_t begin, size_t length)
{
    uint64_t word = 0;
    if (length > sizeof word) {
        word = 0xcbf29ce484222325u; /* FNV-1a */
        for (size_t i = 0; i < length; i++)
            word = (word ^ s->data[begin + (Py_ssize_t)i]) * 0x100000001b3u;
        return word;
    }
    if (s->size - begin < (Py_ssize_t)sizeof word) {
        memcpy(&word, s->data + begin, length);
        return word;
    }
    memcpy(&word, s->data + begin, sizeof word);
    return word & (~(uint64_t)0 >> (64 - 8 * length)); /* little endian, as all that PyTorch runs on */
}

static Segment segment_of(const Search *s, Py_ssize_t begin, Py_ssize_t end)
{
    Segment segment = {begin, end, 0, 0};
    size_t length = (size_t)(end - begin);
    if (length <= LONGEST_KEY) {
        segment.word = word_of(s, begin, length);
        segment.place = (size_t)((segment.word + length) * 0x9e3779b97f4a7c15u >> 32) & ((size_t)s->slot_count - 1);
        PREFETCH(s->slots + segment.place);
    }
    return segment;
}

/* The slot that holds a segment, or the empty one where it belongs. */
static Slot *slot_of(const Search *s, const Segment *segment)
{
    size_t length = (size_t)(segment->end - segment->begin);
    for (size_t place = segment->place;; place = (place + 1) & ((size_t)s->slot_count - 1)) {
        Slot *slot = s->slots + place;
        if (slot->length == 0)
            return slot;
        if (slot->word == segment->word && slot->length == length
            && (length <= sizeof slot->word
                || memcmp(s->keys + s->key_ends[slot->number], s->data + segment->begin, length) == 0))
            return slot;
    }
}

/* Number a segment; 0 if there is no room for it. */
static int take(Search *s, const Segment *segment)
{
    if (s->entries == s->capacity || s->found_count == s->found_capacity)
        return 0;
    size_t length = (size_t)(segment->end - segment->begin), stored = 0;
    if (length <= LONGEST_KEY) {
        Slot *slot = slot_of(s, segment);
        if (slot->length) {
            s->found[s->found_count++] = (int32_t)slot->number;
            s->at = segment->end;
            return 1;
        }
        stored = length > sizeof slot->word ? length : 0;
        if (s->key_ends[s->entries] + stored > (size_t)s->key_bytes)
            return 0;
        memcpy(s->keys + s->key_ends[s->entries], s->data + segment->begin, stored);
        *slot = (Slot){segment->word, (uint32_t)length, (uint32_t)s->entries};
    }
    s->key_ends[s->entries + 1] = s->key_ends[s->entries] + (uint32_t)stored;
    s->found[s->found_count++] = (int32_t)s->entries++;
    s->fresh[2 * s->fresh_count] = segment->begin;
    s->fresh[2 * s->fresh_count++ + 1] = s->at = segment->end;
    return 1;
}

/* Window by window: all its segments are asked for before the first is looked at, since memory is slow. */
static void search(Search *s)
{
    Segment segments[WINDOW];
    Py_ssize_t begin = s->at;
    for (Py_ssize_t at = s->at; s->at < s->stop; at += WINDOW) {
        int count = 0;
        for (uint64_t ends = ends_in(s, at); ends; ends &= ends - 1) {
            Py_ssize_t end = at + __builtin_ctzll(ends) + 1;
            segments[count++] = segment_of(s, begin, end);
            begin = end;
        }
        for (int i = 0; i < count && s->at < s->stop; i++)
            if (!take(s, segments + i))
                return;
    }
}

/* The new segments with a line break between two; NULL if there is no memory. */
static PyObject *fresh_lines(const Search *s)
{
    Py_ssize_t size = s->fresh_count ? s->fresh_count - 1 : 0;
    for (Py_ssize_t i = 0; i < s->fresh_count; i++)
        size += s->fresh[2 * i + 1] - s->fresh[2 * i];
    PyObject *lines = PyBytes_FromStringAndSize(NULL, size);
    char *out = lines ? PyBytes_AS_STRING(lines) : NULL;
    for (Py_ssize_t i = 0; i < s->fresh_count && lines; i++) {
        size_t length = (size_t)(s->fresh[2 * i + 1] - s->fresh[2 * i]);
        if (i)
            *out++ = '\n';
        memcpy(out, s->data + s->fresh[2 * i], length);
        out += length;
    }
    return lines;
}

PyDoc_STRVAR(find_doc,
             "find(data, start, stop, cuts, slots, keys, key_ends, entries, found, fresh)\n--\n\n"
             "Number the segments of data from `start` until one ends at or behind `stop`, or no room is left.\n\n"
             "A segment ends where cuts[256 * byte + next byte] is not 0. One that is new becomes the next entry:\n"
             "`slots` (16 bytes each, zeros at first, a power of two of them) find it again; one of more than 8\n"
             "bytes is also keys[key_ends[n] : key_ends[n + 1]]. The numbers go to `found` (int32). `fresh` (int64,\n"
             "two for each of `found`) is scratch. Returns (where it ended, entries, found, new segments as lines).");

static PyObject *find(PyObject *module, PyObject *arguments)
{
    (void)module;
    Search s = {0};
    Py_buffer data, cuts, slots, keys, key_ends, found, fresh;
    if (!PyArg_ParseTuple(arguments, "y*nny*w*w*w*nw*w*:find", &data, &s.at, &s.stop, &cuts, &slots, &keys,
                          &key_ends, &s.entries, &found, &fresh))
        return NULL;
    s.data = data.buf, s.size = data.len, s.cuts = cuts.buf, s.slots = slots.buf, s.keys = keys.buf;
    s.key_ends = key_ends.buf, s.found = found.buf, s.fresh = fresh.buf;
    s.slot_count = slots.len / (Py_ssize_t)sizeof *s.slots, s.key_bytes = keys.len;
    s.capacity = key_ends.len / (Py_ssize_t)sizeof *s.key_ends - 1;
    s.found_capacity = found.len / (Py_ssize_t)sizeof *s.found;
    int sound = 0 <= s.at && s.at <= s.stop && s.stop <= s.size && cuts.len == 1 << 16 && 0 <= s.entries
                && s.entries <= s.capacity && s.capacity < s.slot_count && s.slot_count <= INT32_MAX
                && (s.slot_count & (s.slot_count - 1)) == 0 && keys.len <= INT32_MAX
                && fresh.len / (Py_ssize_t)(2 * sizeof *s.fresh) >= s.found_capacity;
    PyObject *lines = NULL;
    if (sound) {
        search(&s);
        lines = fresh_lines(&s);
    }
    Py_buffer *buffers[] = {&data, &cuts, &slots, &keys, &key_ends, &found, &fresh};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        PyBuffer_Release(buffers[i]);
    if (!sound)
        return PyErr_Format(PyExc_ValueError, "find: the sizes of the buffers do not fit together");
    return lines ? Py_BuildValue("nnnN", s.at, s.entries, s.found_count, lines) : NULL;
}

PyDoc_STRVAR(gather_doc, "gather(found, id_ends, ids)\n--\n\n"
                         "The ids of the entries `found`, one after the other, as the bytes of int32.\n\n"
                         "Those of entry n are ids[id_ends[n] : id_ends[n + 1]].");

static PyObject *gather(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer found_buffer, ends_buffer, ids_buffer;
    if (!PyArg_ParseTuple(arguments, "y*y*y*:gather", &found_buffer, &ends_buffer, &ids_buffer))
        return NULL;
    const int32_t *found = found_buffer.buf, *ids = ids_buffer.buf;
    const int64_t *ends = ends_buffer.buf;
    Py_ssize_t count = found_buffer.len / (Py_ssize_t)sizeof *found, total = 0;
    Py_ssize_t entries = ends_buffer.len / (Py_ssize_t)sizeof *ends - 1;
    Py_ssize_t available = ids_buffer.len / (Py_ssize_t)sizeof *ids;
    int sound = 1;
    for (Py_ssize_t i = 0; i < count && sound; i++) {
        sound = 0 <= found[i] && found[i] < entries && 0 <= ends[found[i]]
                && ends[found[i]] <= ends[found[i] + 1] && ends[found[i] + 1] <= available;
        if (sound)
            total += ends[found[i] + 1] - ends[found[i]];
    }
    PyObject *result = sound ? PyBytes_FromStringAndSize(NULL, total * (Py_ssize_t)sizeof *ids)
                             : PyErr_Format(PyExc_ValueError, "gather: an entry lies outside of the ids");
    if (result != NULL) {
        int32_t *out = (int32_t *)PyBytes_AS_STRING(result);
        for (Py_ssize_t i = 0; i < count; i++)
            for (int64_t at = ends[found[i]]; at < ends[found[i] + 1]; at++)
                *out++ = ids[at];
    }
    PyBuffer_Release(&found_buffer);
    PyBuffer_Release(&ends_buffer);
    PyBuffer_Release(&ids_buffer);
    return result;
}

/* A unigram model (unigram.py says what the tables are). */
typedef struct {
    const uint32_t *edges;
    const int32_t *scores, *ids, *byte_ids;
    Py_ssize_t slots, nodes;
    int shift;
    int32_t unknown_id;
    int64_t unknown_score;
} Model;

/* The best way to the end of a prefix: its score, and its last piece. */
typedef struct {
    int64_t score;
    Py_ssize_t begin; /* of the last piece; -1: there is no way yet */
    int32_t id;
} Step;

static uint32_t child_of(const Model *m, uint32_t node, uint8_t byte)
{
    uint32_t key = node << 8 | byte;
    for (uint32_t place = key * 0x9e3779b1u >> m->shift;; place = (place + 1) & (uint32_t)(m->slots - 1)) {
        const uint32_t *edge = m->edges + 2 * (size_t)place;
        if (edge[0] == key)
            return edge[1] < (size_t)m->nodes ? edge[1] : 0;
        if (edge[0] == UINT32_MAX)
            return 0;
    }
}

static void reach(Step *step, int64_t score, Py_ssize_t begin, int32_t id)
{
    if (step->begin < 0 || score > step->score)
        *step = (Step){score, begin, id};
}

/* Fills steps[0 .. size]; ways are tried in sentencepiece's order, which decides ties. */
static void find_best(const Model *m, const uint8_t *text, Py_ssize_t size, Step *steps)
{
    for (Py_ssize_t i = 0; i <= size; i++)
        steps[i] = (Step){0, -1, 0};
    for (Py_ssize_t at = 0, width; at < size; at += width) {
        uint32_t node = 0;
        int alone = 0;
        width = text[at] < 0xC0 ? 1 : text[at] < 0xE0 ? 2 : text[at] < 0xF0 ? 3 : 4;
        width = width < size - at ? width : size - at;
        for (Py_ssize_t end = at; end < size && (node = child_of(m, node, text[end])) != 0;) {
            end++;
            if (m->scores[node] == INT32_MIN)
                continue;
            reach(steps + end, steps[at].score + m->scores[node], at, m->ids[node]);
            alone |= end - at == width;
        }
        if (!alone)
            reach(steps + at + width, steps[at].score + m->unknown_score, at, m->unknown_id);
    }
}

/* Writes the ids of the best way, at most one for each byte; returns how many. */
static Py_ssize_t write_ids(const Model *m, const uint8_t *text, Py_ssize_t size, const Step *steps, int32_t *out)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t end = size; end > 0; end = steps[end].begin) { /* backwards */
        int unknown = steps[end].id == m->unknown_id;
        if (unknown && m->byte_ids[0] >= 0)
            for (Py_ssize_t i = end; i > steps[end].begin; i--)
                out[count++] = m->byte_ids[text[i - 1]];
        else if (!unknown || count == 0 || out[count - 1] != m->unknown_id) /* a run of them is one */
            out[count++] = steps[end].id;
    }
    for (Py_ssize_t i = 0; i < count / 2; i++) {
        int32_t id = out[i];
        out[i] = out[count - 1 - i], out[count - 1 - i] = id;
    }
    return count;
}

/* The ids of all lines; `ends` gets, for each line, how many there are up to its end. */
static Py_ssize_t encode_lines(const Model *m, const uint8_t *text, Py_ssize_t size, Step *steps, int32_t *out,
                               int64_t *ends)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t begin = 0, end; begin <= size; begin = end + 1) {
        const uint8_t *newline = memchr(text + begin, '\n', (size_t)(size - begin));
        end = newline ? newline - text : size;
        find_best(m, text + begin, end - begin, steps);
        count += write_ids(m, text + begin, end - begin, steps, out + count);
        *ends++ = count;
    }
    return count;
}

PyDoc_STRVAR(unigram_doc,
             "unigram(lines, edges, scores, ids, byte_ids, unknown_id, unknown_score, ends)\n--\n\n"
             "The ids of lines of UTF-8, one line after the other, as the bytes of int32.\n\n"
             "`ends` (int64, one for each line) gets how many ids there are up to the end of a line.");

static PyObject *unigram(PyObject *module, PyObject *arguments)
{
    (void)module;
    Model m = {0};
    Py_buffer lines, edges, scores, ids, byte_ids, ends;
    long long unknown_score;
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*y*iLw*:unigram", &lines, &edges, &scores, &ids, &byte_ids,
                          &m.unknown_id, &unknown_score, &ends))
        return NULL;
    m.edges = edges.buf, m.scores = scores.buf, m.ids = ids.buf, m.byte_ids = byte_ids.buf;
    m.slots = edges.len / (Py_ssize_t)(2 * sizeof *m.edges), m.nodes = scores.len / (Py_ssize_t)sizeof *m.scores;
    m.unknown_score = unknown_score, m.shift = 33 - __builtin_ffsll((long long)m.slots);
    Py_ssize_t count = 0, empty = 0, longest = 0;
    for (Py_ssize_t begin = 0, end = 0; end <= lines.len; end++)
        if (end == lines.len || ((const char *)lines.buf)[end] == '\n') {
            longest = longest > end - begin ? longest : end - begin;
            begin = end + 1, count++;
        }
    for (Py_ssize_t i = 0; i < m.slots && !empty; i++)
        empty = m.edges[2 * i] == UINT32_MAX;
    int sound = m.slots > 1 && m.slots <= (Py_ssize_t)1 << 31 && (m.slots & (m.slots - 1)) == 0 && empty
                && ids.len == scores.len && byte_ids.len == 256 * (Py_ssize_t)sizeof *m.byte_ids
                && ends.len == count * (Py_ssize_t)sizeof(int64_t);
    Step *steps = sound ? PyMem_Malloc(((size_t)longest + 1) * sizeof *steps) : NULL;
    PyObject *result = steps ? PyBytes_FromStringAndSize(NULL, lines.len * (Py_ssize_t)sizeof *m.ids) : NULL;
    if (!sound)
        PyErr_Format(PyExc_ValueError, "unigram: the sizes of the buffers do not fit together");
    else if (!steps)
        PyErr_NoMemory();
    if (result != NULL) {
        int32_t *out = (int32_t *)PyBytes_AS_STRING(result);
        Py_ssize_t written = encode_lines(&m, lines.buf, lines.len, steps, out, ends.buf);
        _PyBytes_Resize(&result, written * (Py_ssize_t)sizeof *m.ids);
    }
    PyMem_Free(steps);
    Py_buffer *buffers[] = {&lines, &edges, &scores, &ids, &byte_ids, &ends};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        PyBuffer_Release(buffers[i]);
    return result;
}

static PyMethodDef methods[] = {{"find", find, METH_VARARGS, find_doc},
                                {"gather", gather, METH_VARARGS, gather_doc},
                                {"unigram", unigram, METH_VARARGS, unigram_doc},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_segments", "See segments.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__segments(void) { return PyModule_Create(&definition); }
