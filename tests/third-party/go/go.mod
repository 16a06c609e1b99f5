module selvedge.test/filter

go 1.24
