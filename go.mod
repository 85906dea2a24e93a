module joold

go 1.25.0
