#include "winograd_sizes.h"

namespace winograd_sizes {

namespace {

// The absolute values of a matrix of `rows` rows and `columns` columns.
struct Matrix {
    int rows, columns;
    std::vector<double> numbers;
    double at(int i, int j) const { return numbers[size_t(i * columns + j)]; }
    Matrix transposed() const {
        Matrix result{columns, rows, {}};
        for (int j = 0; j < columns; j++)
            for (int i = 0; i < rows; i++) result.numbers.push_back(at(i, j));
        return result;
    }
    // M d M^T.
    Points around(const Points& d) const {
        Points half(size_t(rows * columns)), result(size_t(rows * rows));
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++)
                for (int k = 0; k < columns; k++) half[size_t(i * columns + j)] += at(i, k) * d[size_t(k * columns + j)];
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < rows; j++)
                for (int k = 0; k < columns; k++) result[size_t(i * rows + j)] += half[size_t(i * columns + k)] * at(j, k);
        return result;
    }
};

// The points 0, +-a, +-b and infinity.
constexpr double a = 0.75, b = 1.5, aa = a * a, bb = b * b;
const double na = 1 / (2 * aa * (bb - aa)), nb = 1 / (2 * bb * (bb - aa));

const Matrix BT{6, 6, {aa * bb, 0, aa + bb, 0, 1, 0, 0, a * bb, bb, a, 1, 0, 0, a * bb, bb, a, 1, 0,
                       0, b * aa, aa, b, 1, 0, 0, b * aa, aa, b, 1, 0, 0, aa * bb, 0, aa + bb, 0, 1}};
const Matrix G{6, 3, {1 / (aa * bb), 0, 0, na, a * na, aa * na, na, a * na, aa * na,
                      nb, b * nb, bb * nb, nb, b * nb, bb * nb, 0, 0, 1}};
const Matrix AT{4, 6, {1, 1, 1, 1, 1, 0, 0, a, a, b, b, 0, 0, aa, aa, bb, bb, 0, 0, a * aa, a * aa, b * bb, b * bb, 1}};
const Matrix A = AT.transposed(), GT = G.transposed();

// The absolute values of a square of `side` pixels of channel c.
Points square(const Image& x, int n, int h, int w, int c, int side) {
    Points d;
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) d.push_back(x.has(h + i, w + j) ? std::fabs(x.at(n, h + i, w + j)[c]) : 0);
    return d;
}

}  // namespace

Points window(const Image& x, int n, int h, int w, int c) { return BT.around(square(x, n, h, w, c, WINDOW)); }

Points kernel(const std::vector<double>& g) {
    Points sizes;
    for (double number : g) sizes.push_back(std::fabs(number));
    return G.around(sizes);
}

Points tile(const Image& g, int n, int h, int w, int o) { return A.around(square(g, n, h, w, o, TILE)); }

Points outputs(const Points& m) { return AT.around(m); }

Points back(const Points& m) { return GT.around(m); }

}  // namespace winograd_sizes
